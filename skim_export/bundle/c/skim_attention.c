// Attention of grouped queries on the key/value cache.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "skim_math.h"
#include "skim_operators.h"

// A new token's row of the packed queries, keys and values.
struct packed_row {
  const float* queries;  // [heads][head_size]
  const float* keys;     // [kv_heads][head_size]
  const float* values;   // [kv_heads][head_size]
};

static struct packed_row packed_row(const struct skim_thread* thread, const struct skim_operator* op, int32_t token) {
  const struct skim_attention* a = &skim_model.attentions[op->index];
  const float* row = skim_row(thread, op->in[0], token);
  const float* keys = row + (ptrdiff_t)a->heads * a->head_size;
  return (struct packed_row){row, keys, keys + (ptrdiff_t)a->kv_heads * a->head_size};
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

// A head's place in the cache, from a position on.
static ptrdiff_t cached(const struct skim_session* session, const struct skim_attention* a, int32_t kv_head,
                        int32_t position) {
  return ((ptrdiff_t)kv_head * session->context + position) * a->head_size;
}

// Stores the thread's share of all new keys and values.
static void append(const struct skim_thread* thread, const struct skim_operator* op) {
  const struct skim_session* session = thread->session;
  const struct skim_attention* a = &skim_model.attentions[op->index];
  const struct skim_range share = skim_share(thread, session->count * a->kv_heads);
  for (int32_t i = share.begin; i < share.end; ++i) {
    const int32_t token = i / a->kv_heads, kv_head = i % a->kv_heads, position = session->length + token;
    const struct packed_row row = packed_row(thread, op, token);
    const ptrdiff_t place = cached(session, a, kv_head, position);
    rotate(session, a, row.keys + kv_head * a->head_size, position, 1.0f, session->keys[op->index] + place);
    memcpy(session->values[op->index] + place, row.values + kv_head * a->head_size,
           sizeof(float) * (size_t)a->head_size);
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

// y[size] += sum over count <= 4 of weights[i] * values[i][size]
static void add_weighted(const float* restrict weights, const float* restrict values, int32_t count, int32_t size,
                         float* restrict y) {
  if (count == 4) {  // at once: y is loaded and stored once
    const float* restrict v1 = values + size, * restrict v2 = v1 + size, * restrict v3 = v2 + size;
    for (int32_t i = 0; i < size; ++i) {
      y[i] += weights[0] * values[i] + weights[1] * v1[i] + weights[2] * v2[i] + weights[3] * v3[i];
    }
    return;
  }
  for (int32_t j = 0; j < count; ++j) {
    for (int32_t i = 0; i < size; ++i) y[i] += weights[j] * values[(ptrdiff_t)j * size + i];
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
  const int32_t past = position - start;  // positions before this one
  const struct packed_row row = packed_row(thread, op, token);
  float* keys = session->keys[op->index] + cached(session, a, kv_head, start);
  float* values = session->values[op->index] + cached(session, a, kv_head, start);

  float *new_key = thread->scratch, *queries = new_key + size;  // [size], [group][size]
  float* scores = queries + (ptrdiff_t)group * size;            // [group][context]
  float* y = (float*)skim_row(thread, op->out[0], token) + (ptrdiff_t)head * size;
  const float* new_value = row.values + (ptrdiff_t)kv_head * size;
  rotate(session, a, row.keys + (ptrdiff_t)kv_head * size, position, 1.0f, new_key);
  if (session->count == 1 && head % group == 0) {  // of many tokens, `append` has stored them
    memcpy(keys + (ptrdiff_t)past * size, new_key, sizeof(float) * (size_t)size);
    memcpy(values + (ptrdiff_t)past * size, new_value, sizeof(float) * (size_t)size);
  }

  for (int32_t h = 0; h < count; ++h) {
    rotate(session, a, row.queries + (ptrdiff_t)(head + h) * size, position, a->scale, queries + (ptrdiff_t)h * size);
  }
  // Positions outside, heads inside: a key is loaded once for all heads.
  for (int32_t i = 0; i < past; ++i) {
    for (int32_t h = 0; h < count; ++h) {
      scores[(ptrdiff_t)h * session->context + i] =
          skim_dot(queries + (ptrdiff_t)h * size, keys + (ptrdiff_t)i * size, size);
    }
  }
  for (int32_t h = 0; h < count; ++h) {
    float* s = scores + (ptrdiff_t)h * session->context;
    s[past] = skim_dot(queries + (ptrdiff_t)h * size, new_key, size);
    for (int32_t i = 0; a->softcap > 0 && i <= past; ++i) s[i] = a->softcap * tanhf(s[i] / a->softcap);
    softmax(s, past + 1);
    for (int32_t i = 0; i < size; ++i) y[(ptrdiff_t)h * size + i] = s[past] * new_value[i];
  }
  for (int32_t i = 0; i < past; i += 4) {
    const int32_t rows = past - i < 4 ? past - i : 4;
    for (int32_t h = 0; h < count; ++h) {
      add_weighted(scores + (ptrdiff_t)h * session->context + i, values + (ptrdiff_t)i * size, rows, size,
                   y + (ptrdiff_t)h * size);
    }
  }
}

void skim_attend(struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  struct skim_session* session = thread->session;
  const struct skim_attention* a = &skim_model.attentions[op->index];
  const int32_t group = a->heads / a->kv_heads;
  // With one token, no thread reads from the cache what another has just stored: that spares a barrier.
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
