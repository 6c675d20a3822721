// What the parts of the runtime share: the state of a session and of its threads.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "skim_barrier.h"
#include "skim_model.h"

struct skim_thread {
  struct skim_session* session;
  int32_t index;
  pthread_t handle;
  uint8_t* own;    // its own buffers
  float* scratch;  // of attention
};

enum { SKIM_CACHE_LANES = 32 };  // positions whose keys lie side by side

struct skim_session {
  const uint8_t* weights;
  int32_t context;   // positions that may be used
  int32_t capacity;  // positions that the cache has room for, a multiple of SKIM_CACHE_LANES
  int32_t length;    // positions in the cache
  float* cache;      // of all attentions
  float** keys;      // in it, [attention_count]: as skim_attention.c has it
  float** values;    // the same
  uint8_t* shared;   // the buffers of all threads
  int32_t threads;   // the caller's among them
  int32_t started;   // of them
  struct skim_thread* thread;
  struct skim_barrier barrier;

  // The step in progress, at positions `length` and on.
  const int32_t* tokens;
  int32_t count;      // 1 to skim_model.chunk
  bool last;          // whether its logits are wanted
  atomic_int* taken;  // [operator_count]: parts of each operator that threads have taken up to now
  bool stop;          // for the threads: to end
};

// A part of 0..count-1, `begin` to `end` - 1.
struct skim_range {
  int32_t begin, end;
};

// The thread's part of `count` equal pieces of work.
static inline struct skim_range skim_share(const struct skim_thread* thread, int32_t count) {
  const int64_t parts = thread->session->threads;
  return (struct skim_range){(int32_t)(count * (int64_t)thread->index / parts),
                             (int32_t)(count * (int64_t)(thread->index + 1) / parts)};
}

static inline const void* skim_tensor(const struct skim_session* session, skim_offset offset) {
  return offset ? session->weights + (size_t)offset : NULL;
}

// The row of a token in a buffer.
static inline void* skim_row(const struct skim_thread* thread, int16_t buffer, int32_t token) {
  const struct skim_buffer* b = &skim_model.buffers[buffer];
  const bool one_row = b->last_only || thread->session->count == 1;
  if (b->own && one_row) return thread->own + b->own_offset;
  return thread->session->shared + b->shared_offset + (b->last_only ? 0 : (size_t)token * (size_t)b->row_bytes);
}
