// Attention of grouped queries on the key/value cache.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "skim_math.h"
#include "skim_operators.h"

// A new token's queries, keys and values.
struct new_row {
  const float* queries;  // [heads][head_size]
  const float* keys;     // [kv_heads][head_size]
  const float* values;   // [kv_heads][head_size]
};

static struct new_row new_row(const struct skim_thread* thread, const struct skim_operator* op, int32_t token) {
  return (struct new_row){skim_row(thread, op->in[0], token), skim_row(thread, op->in[1], token),
                          skim_row(thread, op->in[2], token)};
}

// y[head_size] = x, rotated for a position and scaled.
static void rotate(const struct skim_session* session, const struct skim_attention* a, const float* restrict x,
                   int32_t position, float scale, float* restrict y) {
  const int32_t half = a->rotary_size / 2;
  if (half) {
    const float* restrict cos = (const float*)skim_tensor(session, a->cos_cache) + (ptrdiff_t)position * half;
    const float* restrict sin = (const float*)skim_tensor(session, a->sin_cache) + (ptrdiff_t)position * half;
    const int32_t step = a->interleaved ? 2 : 1, partner = a->interleaved ? 1 : half;
    for (int32_t i = 0; i < half; ++i) {
      const float real = x[i * step], imaginary = x[i * step + partner];
      y[i * step] = scale * (real * cos[i] - imaginary * sin[i]);
      y[i * step + partner] = scale * (real * sin[i] + imaginary * cos[i]);
    }
  }
  for (int32_t i = a->rotary_size; i < a->head_size; ++i) y[i] = scale * x[i];
}

// The cache of a key/value head: keys lie in blocks of LANES positions, [capacity / LANES][head_size][LANES], so that
// the scores of a block take no sums across lanes; values lie as they come, [capacity][head_size].
enum { LANES = SKIM_CACHE_LANES };

static float* cached_keys(const struct skim_session* session, const struct skim_operator* op, int32_t kv_head) {
  const struct skim_attention* a = &skim_model.attentions[op->index];
  return session->keys[op->index] + (ptrdiff_t)kv_head * session->capacity * a->head_size;
}

static float* cached_values(const struct skim_session* session, const struct skim_operator* op, int32_t kv_head) {
  const struct skim_attention* a = &skim_model.attentions[op->index];
  return session->values[op->index] + (ptrdiff_t)kv_head * session->capacity * a->head_size;
}

// Stores a rotated key and a value.
static void store(const struct skim_session* session, const struct skim_operator* op, int32_t kv_head, int32_t position,
                  const float* restrict key, const float* value) {
  const int32_t size = skim_model.attentions[op->index].head_size;
  float* restrict keys = cached_keys(session, op, kv_head) + (ptrdiff_t)(position / LANES) * size * LANES;
  for (int32_t i = 0; i < size; ++i) keys[(ptrdiff_t)i * LANES + position % LANES] = key[i];
  memcpy(cached_values(session, op, kv_head) + (ptrdiff_t)position * size, value, sizeof(float) * (size_t)size);
}

// Stores the thread's share of all new keys and values.
static void append(const struct skim_thread* thread, const struct skim_operator* op) {
  const struct skim_session* session = thread->session;
  const struct skim_attention* a = &skim_model.attentions[op->index];
  const struct skim_range share = skim_share(thread, session->count * a->kv_heads);
  for (int32_t i = share.begin; i < share.end; ++i) {
    const int32_t token = i / a->kv_heads, kv_head = i % a->kv_heads, position = session->length + token;
    const struct new_row row = new_row(thread, op, token);
    const ptrdiff_t channel = (ptrdiff_t)kv_head * a->head_size;
    rotate(session, a, row.keys + channel, position, 1.0f, thread->scratch);
    store(session, op, kv_head, position, thread->scratch, row.values + channel);
  }
}

// Inlined into a larger function, gcc would keep the sums of these loops in memory instead of registers.
#define NOT_INLINED __attribute__((noinline))

// scores[LANES] of a query with a block of keys.
NOT_INLINED static void score_block(const float* restrict query, const float* restrict keys, int32_t size,
                                    float* restrict scores) {
  float sums[LANES];
  for (int32_t j = 0; j < LANES; ++j) sums[j] = query[0] * keys[j];
  for (int32_t i = 1; i < size; ++i) {
    for (int32_t j = 0; j < LANES; ++j) sums[j] += query[i] * keys[(ptrdiff_t)i * LANES + j];
  }
  memcpy(scores, sums, sizeof sums);
}

// The same for its first `count` keys; nothing else is read, which another thread may be writing.
static void score_part(const float* restrict query, const float* restrict keys, int32_t size, int32_t count,
                       float* restrict scores) {
  memset(scores, 0, sizeof *scores * (size_t)count);
  for (int32_t i = 0; i < size; ++i) {
    for (int32_t j = 0; j < count; ++j) scores[j] += query[i] * keys[(ptrdiff_t)i * LANES + j];
  }
}

// Turns scores into weights.
static void softmax(float* restrict scores, int32_t count) {
  const float most = skim_max(scores, count);
  float sums[SKIM_SUMS] = {0};
  int32_t i = 0;
  for (; i + SKIM_SUMS <= count; i += SKIM_SUMS) {
    for (int32_t j = 0; j < SKIM_SUMS; ++j) scores[i + j] = skim_exp(scores[i + j] - most);
    for (int32_t j = 0; j < SKIM_SUMS; ++j) sums[j] += scores[i + j];
  }
  for (int32_t j = 0; i + j < count; ++j) {
    scores[i + j] = skim_exp(scores[i + j] - most);
    sums[j] += scores[i + j];
  }
  const float factor = 1.0f / skim_sum(sums);
  for (i = 0; i < count; ++i) scores[i] *= factor;
}

// y[size] += sum of weights[i] * values[i][size]
NOT_INLINED static void add_weighted(const float* restrict weights, const float* restrict values, int32_t count,
                                     int32_t size, float* restrict y) {
  int32_t channel = 0;
  for (; channel + LANES <= size; channel += LANES) {
    float sums[LANES];
    memcpy(sums, y + channel, sizeof sums);
    for (int32_t i = 0; i < count; ++i) {
      for (int32_t j = 0; j < LANES; ++j) sums[j] += weights[i] * values[(ptrdiff_t)i * size + channel + j];
    }
    memcpy(y + channel, sums, sizeof sums);
  }
  for (int32_t i = 0; i < count && channel < size; ++i) {
    for (int32_t j = channel; j < size; ++j) y[j] += weights[i] * values[(ptrdiff_t)i * size + j];
  }
}

// What heads `head` to `head + count - 1`, which share a key/value head, see at a token.
static void attend(const struct skim_thread* thread, const struct skim_operator* op, int32_t token, int32_t head,
                   int32_t count) {
  const struct skim_session* session = thread->session;
  const struct skim_attention* a = &skim_model.attentions[op->index];
  const int32_t size = a->head_size, group = a->heads / a->kv_heads, kv_head = head / group;
  const int32_t position = session->length + token;
  const int32_t start = a->window && position >= a->window ? position + 1 - a->window : 0;
  const int32_t first = start / LANES * LANES;  // where its block begins
  const struct new_row row = new_row(thread, op, token);
  const float* value = row.values + (ptrdiff_t)kv_head * size;
  const float* keys = cached_keys(session, op, kv_head);
  const float* values = cached_values(session, op, kv_head);
  const ptrdiff_t stride = session->capacity;         // of scores
  float* key = thread->scratch;                       // [size]
  float* queries = key + size;                        // [group][size]
  float* scores = queries + (ptrdiff_t)group * size;  // [group][capacity], from position `first` on
  float* y = (float*)skim_row(thread, op->out[0], token) + (ptrdiff_t)head * size;

  rotate(session, a, row.keys + (ptrdiff_t)kv_head * size, position, 1.0f, key);
  if (session->count == 1 && head % group == 0) store(session, op, kv_head, position, key, value);
  for (int32_t h = 0; h < count; ++h) {
    rotate(session, a, row.queries + (ptrdiff_t)(head + h) * size, position, a->scale, queries + (ptrdiff_t)h * size);
  }

  // Blocks outside, heads inside: a block is loaded once for all heads. The newest key and value are not read from the
  // cache, where another thread may be about to store them.
  for (int32_t block = first; block < position; block += LANES) {
    const float* block_keys = keys + (ptrdiff_t)block * size;
    for (int32_t h = 0; h < count; ++h) {
      const float* query = queries + (ptrdiff_t)h * size;
      float* block_scores = scores + (ptrdiff_t)h * stride + (block - first);
      if (position - block >= LANES) {
        score_block(query, block_keys, size, block_scores);
      } else {
        score_part(query, block_keys, size, position - block, block_scores);
      }
    }
  }
  for (int32_t h = 0; h < count; ++h) {
    float* weights = scores + (ptrdiff_t)h * stride + (start - first);
    const int32_t past = position - start;
    weights[past] = skim_dot(queries + (ptrdiff_t)h * size, key, size);
    for (int32_t i = 0; a->softcap > 0 && i <= past; ++i) weights[i] = a->softcap * tanhf(weights[i] / a->softcap);
    softmax(weights, past + 1);
    for (int32_t i = 0; i < size; ++i) y[(ptrdiff_t)h * size + i] = weights[past] * value[i];
  }
  for (int32_t block = start; block < position; block += LANES) {
    const int32_t rows = position - block < LANES ? position - block : LANES;
    for (int32_t h = 0; h < count; ++h) {
      add_weighted(scores + (ptrdiff_t)h * stride + (block - first), values + (ptrdiff_t)block * size, rows, size,
                   y + (ptrdiff_t)h * size);
    }
  }
}

void skim_attend(struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  struct skim_session* session = thread->session;
  const struct skim_attention* a = &skim_model.attentions[op->index];
  const int32_t group = a->heads / a->kv_heads;
  // Of one token, no thread reads from the cache what another has just stored: that spares a barrier.
  if (session->count > 1) {
    append(thread, op);
    skim_barrier_wait(&session->barrier);
  }
  const struct skim_range share = skim_share(thread, (tokens.end - tokens.begin) * a->heads);
  for (int32_t i = share.begin, count; i < share.end; i += count) {
    const int32_t head = i % a->heads, rest = group - head % group;
    count = share.end - i < rest ? share.end - i : rest;
    attend(thread, op, tokens.begin + i / a->heads, head, count);
  }
}
