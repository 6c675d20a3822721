#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64  // more than 2 GiB on 32-bit machines, too
#include "skim_weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "skim_model.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights.bin is little-endian"
#endif

static bool in_range(const int32_t* rows, int32_t count, int32_t N) {
  for (int32_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= N) return false;
  }
  return true;
}

// Whether no index in the weights leads outside of the memory that it is for: all else in them are mere values.
static bool indices_in_range(const uint8_t* weights) {
  for (int32_t i = 0; i < skim_model.linear_count; ++i) {
    const struct skim_linear* linear = &skim_model.linears[i];
    for (int32_t c = 0; c < linear->class_count; ++c) {
      const struct skim_rows* rows = &linear->classes[c];
      if (!in_range((const int32_t*)(weights + rows->row_index), rows->count, linear->N)) return false;
    }
    if (linear->stored_row && !in_range((const int32_t*)(weights + linear->stored_row), linear->N, linear->N)) {
      return false;
    }
  }
  return true;
}

static const uint8_t* map(int file, const char* path, struct skim_error* error) {
  struct stat status;
  if (fstat(file, &status) != 0) {
    snprintf(error->text, sizeof error->text, "%s: %s", path, strerror(errno));
    return NULL;
  }
  const unsigned long long size = (unsigned long long)status.st_size, expected = skim_model.weights_size;
  if (size != expected) {
    snprintf(error->text, sizeof error->text, "%s: has %llu bytes, but the weights of this model %llu: copy it again",
             path, size, expected);
    return NULL;
  }
  if (expected > SIZE_MAX) {
    snprintf(error->text, sizeof error->text, "%s: %llu bytes are too many for a 32-bit machine", path, expected);
    return NULL;
  }
  void* weights = mmap(NULL, (size_t)expected, PROT_READ, MAP_PRIVATE, file, 0);
  if (weights == MAP_FAILED) {
    snprintf(error->text, sizeof error->text, "%s: cannot be mapped: %s", path, strerror(errno));
    return NULL;
  }
  if (memcmp(weights, skim_model.header, sizeof skim_model.header) != 0) {
    snprintf(error->text, sizeof error->text, "%s: holds another model's weights; take the one of this bundle", path);
    skim_unmap_weights(weights);
    return NULL;
  }
  if (!indices_in_range(weights)) {
    snprintf(error->text, sizeof error->text, "%s: is damaged: copy it again", path);
    skim_unmap_weights(weights);
    return NULL;
  }
  posix_madvise(weights, (size_t)expected, POSIX_MADV_WILLNEED);
  return weights;
}

const uint8_t* skim_map_weights(const char* path, struct skim_error* error) {
  const int file = open(path, O_RDONLY);
  if (file < 0) {
    snprintf(error->text, sizeof error->text, "%s: %s", path, strerror(errno));
    return NULL;
  }
  const uint8_t* weights = map(file, path, error);
  close(file);  // the mapping stays
  return weights;
}

void skim_unmap_weights(const uint8_t* weights) { munmap((void*)weights, (size_t)skim_model.weights_size); }
