// fuzz WEIGHTS SEED FIRST COUNT: files of weights with something wrong in them, as a device may get them. WEIGHTS is
// damaged in another way each time, run if it is accepted, and mended again: with sanitizers, nothing must be found.
// Each input depends on SEED and its own number alone.
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "skim_model.h"
#include "skim_runtime.h"

enum { MOST_STEPS = 2, MOST_TOKENS = 12, CONTEXT = 16, HEADER = 64 };

// splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
static uint64_t draw(uint64_t* state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static int64_t below(uint64_t* state, int64_t bound) { return (int64_t)(draw(state) % (uint64_t)bound); }

static void check(int done, const char* what) {
  if (done) return;
  perror(what);
  exit(1);
}

static void put(int file, const void* bytes, int64_t count, int64_t offset) {
  check(pwrite(file, bytes, (size_t)count, (off_t)offset) == (ssize_t)count, "WEIGHTS");
}

// An index is a word at a multiple of its size; the others are values of any kind.
static void damage(uint64_t* state, int file, int64_t size) {
  static const int32_t strange[] = {-1, INT32_MIN, INT32_MAX, 1 << 20, 320, 64, 0, 1};
  const uint64_t value = draw(state);
  switch (below(state, 6)) {
    case 0:
      put(file, &value, 1, below(state, size));
      break;
    case 1:
      put(file, &value, 1, below(state, HEADER));
      break;
    case 2:
      put(file, &value, 4, below(state, size / 4) * 4);
      break;
    case 3:
      put(file, &strange[below(state, 8)], 4, below(state, size / 4) * 4);
      break;
    case 4:
      for (int i = 0; i < 64; ++i) put(file, &strange[below(state, 8)], 4, below(state, size / 4) * 4);
      break;
    default:
      check(ftruncate(file, (off_t)(below(state, 8) ? size + below(state, 9) - 4 : below(state, 2 * size))) == 0,
            "WEIGHTS");
  }
}

// 1 if the weights were accepted.
static int run(uint64_t* state, const char* path) {
  struct skim_error error;
  struct skim_session* session = skim_open(path, 1 + (int32_t)below(state, 2), CONTEXT, &error);
  if (!session) return 0;
  for (int step = 0; step < MOST_STEPS; ++step) {
    int32_t tokens[MOST_TOKENS];
    const int32_t count = 1 + (int32_t)below(state, MOST_TOKENS);
    for (int32_t i = 0; i < count; ++i)
      tokens[i] = (int32_t)below(state, skim_model.vocabulary + 1) - !below(state, 99);
    skim_step(session, tokens, count, &error);
  }
  skim_close(session);
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: fuzz WEIGHTS SEED FIRST COUNT\n");
    return 2;
  }
  const uint64_t seed = strtoull(argv[2], NULL, 10), first = strtoull(argv[3], NULL, 10);
  const uint64_t count = strtoull(argv[4], NULL, 10);
  const int file = open(argv[1], O_RDWR);
  struct stat status;
  check(file >= 0 && fstat(file, &status) == 0, argv[1]);
  const int64_t size = (int64_t)status.st_size;
  uint8_t* whole = malloc((size_t)size);
  check(whole && pread(file, whole, (size_t)size, 0) == (ssize_t)size, argv[1]);
  uint64_t accepted = 0;
  for (uint64_t i = first; i < first + count; ++i) {
    uint64_t state = seed << 32 ^ i;
    for (int64_t left = 1 + below(&state, 3); left > 0; --left) damage(&state, file, size);
    accepted += (uint64_t)run(&state, argv[1]);
    check(ftruncate(file, (off_t)size) == 0, argv[1]);
    put(file, whole, size, 0);
  }
  printf("%llu inputs, %llu accepted, 0 findings\n", (unsigned long long)count, (unsigned long long)accepted);
  free(whole);
  close(file);
  return 0;
}
