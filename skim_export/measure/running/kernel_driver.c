// Calls kernels with what a file says, so that their results can be looked at on another machine.
//
//     kernel_driver CALLS RESULTS REPETITIONS
//
// Each function is called so many times.
// CALLS holds, for each call, the name of a function (64 bytes, zero-padded), the number of its arguments, and these: a
// kind (int32), a size in bytes (int32) and as many bytes. A kind is 0 for an integer, 1 for memory that is read, 2 for
// memory that is written. What is written is poisoned before and put into RESULTS, in this order.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ARGUMENTS 13
#define NAME_BYTES 64
#define READABLE_BEHIND 64  // a kernel may read so many bytes behind its arguments' ends

typedef void (*function)(void);
static const struct {
  const char* name;
  function call;
} kFunctions[] = {
#include "functions.inc"
};

typedef void (*prepare)(void*, void*, void*, int32_t, int32_t);
typedef void (*gather)(void*, void*, void*, void*, int32_t, int32_t);
typedef void (*matmul)(void*, void*, void*, void*, void*, void*, int32_t, int32_t, int32_t, int32_t, int32_t);

static int32_t read_int(FILE* file) {
  int32_t value;
  if (fread(&value, sizeof value, 1, file) != 1) exit(3);
  return value;
}

static function find(const char* name) {
  for (size_t i = 0; i < sizeof kFunctions / sizeof *kFunctions; ++i) {
    if (strcmp(kFunctions[i].name, name) == 0) return kFunctions[i].call;
  }
  fprintf(stderr, "there is no function %s\n", name);
  exit(2);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int repetitions = atoi(argv[3]);
  FILE *calls = fopen(argv[1], "rb"), *results = fopen(argv[2], "wb");
  if (!calls || !results) return 3;
  char name[NAME_BYTES];
  while (fread(name, sizeof name, 1, calls) == 1) {
    void* memory[MOST_ARGUMENTS] = {0};
    int32_t integers[MOST_ARGUMENTS] = {0};
    int32_t sizes[MOST_ARGUMENTS] = {0};
    int memories = 0, numbers = 0, written = 0;
    const int32_t count = read_int(calls);
    for (int i = 0; i < count; ++i) {
      const int32_t kind = read_int(calls), size = read_int(calls);
      if (kind == 0) {
        integers[numbers++] = read_int(calls);
        continue;
      }
      const size_t bytes = (size_t)size + (kind == 1 ? READABLE_BEHIND : 0);
      char* data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
      memset(data, 0xff, (bytes + 63) / 64 * 64 + 64);
      if (kind == 1 && fread(data, 1, size, calls) != (size_t)size) return 3;
      if (kind == 2) written = memories;
      sizes[memories] = size;
      memory[memories++] = data;
    }
    const function call = find(name);
    void** m = memory;
    int32_t* n = integers;
    for (int i = 0; i < repetitions; ++i) {
      if (memories == 3) {
        ((prepare)call)(m[0], m[1], m[2], n[0], n[1]);
      } else if (memories == 4) {
        ((gather)call)(m[0], m[1], m[2], m[3], n[0], n[1]);
      } else {
        ((matmul)call)(m[0], m[1], m[2], m[3], m[4], m[5], n[0], n[1], n[2], n[3], n[4]);
      }
    }
    // Nothing may be written behind the end.
    const unsigned char* end = (unsigned char*)memory[written] + sizes[written];
    for (int i = 0; i < 64; ++i) {
      if (end[i] != 0xff) return 4;
    }
    fwrite(memory[written], 1, sizes[written], results);
    for (int i = 0; i < memories; ++i) free(memory[i]);
  }
  return fclose(results) == 0 ? 0 : 3;
}
