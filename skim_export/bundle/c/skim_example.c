// The smallest program that uses the kernels: one product, its rows shared out between threads.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "skim_kernels.h"
#include "skim_model.h"
#include "skim_weights.h"

enum { THREADS = 2 };

// One thread's part of y = W x for one token. A bias is not added.
struct part {
  pthread_t thread;
  const uint8_t* weights;
  const void* x;  // prepared
  float* y;       // [N]
  int index;
};

// The first layer of the model; before it comes the embedding.
static const struct skim_linear* linear(void) { return &skim_model.linears[1]; }

static void* multiply(void* argument) {
  const struct part* part = argument;
  const uint8_t* weights = part->weights;
  for (int32_t c = 0; c < linear()->class_count; ++c) {
    const struct skim_rows* rows = &linear()->classes[c];
    const int32_t begin = (int32_t)((int64_t)rows->count * part->index / THREADS);
    const int32_t end = (int32_t)((int64_t)rows->count * (part->index + 1) / THREADS);
    rows->matmul(weights + rows->codes, weights + rows->codebook, (const float*)(weights + rows->row_scale),
                 (const int32_t*)(weights + rows->row_index), part->x, part->y, 1, linear()->K, linear()->N, begin,
                 end);
  }
  return NULL;
}

int main(int argc, char** argv) {
  struct skim_error error;
  const uint8_t* weights = argc == 2 ? skim_map_weights(argv[1], &error) : NULL;
  if (!weights) {
    fprintf(stderr, "skim_example: error: %s\n", argc == 2 ? error.text : "usage: skim_example weights.bin");
    return 2;
  }
  const int32_t N = linear()->N, K = linear()->K;
  float *x = malloc(sizeof *x * (size_t)K), *y = malloc(sizeof *y * (size_t)N);
  void* prepared = aligned_alloc(64, (size_t)skim_prepared_bytes(K));  // a multiple of 64
  for (int32_t k = 0; k < K; ++k) x[k] = (float)(k % 7 - 3);
  const float* column_scale = (const float*)(weights + linear()->column_scale);
  (linear()->integer ? skim_prepare_integer : skim_prepare)(x, column_scale, prepared, 1, K);

  struct part parts[THREADS];
  for (int i = 0; i < THREADS; ++i) {
    parts[i] = (struct part){.weights = weights, .x = prepared, .y = y, .index = i};
    pthread_create(&parts[i].thread, NULL, multiply, &parts[i]);
  }
  for (int i = 0; i < THREADS; ++i) pthread_join(parts[i].thread, NULL);

  for (int32_t n = 0; n < N; ++n) printf("%.9g\n", y[n]);
  free(x);
  free(y);
  free(prepared);
  skim_unmap_weights(weights);
  return 0;
}
