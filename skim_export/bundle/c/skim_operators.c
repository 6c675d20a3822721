#include "skim_operators.h"

#include <math.h>

#include "skim_kernels.h"
#include "skim_math.h"

// The tokens of operators that write `own` buffers: one token is computed by every thread, many are shared out.
static struct skim_range own_tokens(const struct skim_thread* thread, struct skim_range tokens) {
  const int32_t count = tokens.end - tokens.begin;
  if (count == 1) return tokens;
  const struct skim_range share = skim_share(thread, count);
  return (struct skim_range){tokens.begin + share.begin, tokens.begin + share.end};
}

void skim_embed(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  const struct skim_session* session = thread->session;
  const struct skim_linear* linear = &skim_model.linears[op->index];
  const int32_t* stored_row = skim_tensor(session, linear->stored_row);
  const float* restrict scale = skim_tensor(session, linear->column_scale);
  tokens = own_tokens(thread, tokens);
  for (int32_t token = tokens.begin; token < tokens.end; ++token) {
    float* restrict y = skim_row(thread, op->out[0], token);
    const int32_t id = session->tokens[token];
    int32_t row = stored_row ? stored_row[id] : id;
    const struct skim_rows* rows = linear->classes;
    for (; row >= rows->count; ++rows) row -= rows->count;
    rows->gather(skim_tensor(session, rows->codes), skim_tensor(session, rows->codebook),
                 skim_tensor(session, rows->row_scale), y, linear->K, row);
    for (int32_t i = 0; i < linear->K; ++i) y[i] *= scale[i];
  }
}

static void normalize(const float* restrict x, const float* restrict weight, float epsilon, int32_t width,
                      float* restrict y) {
  const float scale = 1.0f / sqrtf(skim_dot(x, x, width) / (float)width + epsilon);
  for (int32_t i = 0; i < width; ++i) y[i] = x[i] * scale * weight[i];
}

static void add(const float* restrict a, const float* restrict b, float* restrict y, struct skim_range columns) {
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = a[i] + b[i];
}

void skim_norm(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  const float* weight = skim_tensor(thread->session, op->weight);
  const int32_t width = skim_model.buffers[op->out[0]].width;
  tokens = own_tokens(thread, tokens);
  for (int32_t token = tokens.begin; token < tokens.end; ++token) {
    const float* x = skim_row(thread, op->in[0], token);
    if (op->kind == SKIM_ADD_NORM) {
      float* sum = skim_row(thread, op->out[1], token);
      add(x, skim_row(thread, op->in[1], token), sum, (struct skim_range){0, width});
      x = sum;
    }
    float* y = skim_row(thread, op->out[0], token);
    for (int32_t i = 0; i < width; i += op->channels) normalize(x + i, weight, op->epsilon, op->channels, y + i);
  }
}

void skim_prepare_input(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  const struct skim_linear* linear = &skim_model.linears[op->index];
  const float* scale = skim_tensor(thread->session, linear->column_scale);
  tokens = own_tokens(thread, tokens);
  for (int32_t token = tokens.begin; token < tokens.end; ++token) {
    (linear->integer ? skim_prepare_integer : skim_prepare)(skim_row(thread, op->in[0], token), scale,
                                                            skim_row(thread, op->out[0], token), 1, linear->K);
  }
}

// Which of the rows comes first from `byte` on, where their codes begin at 0.
static int32_t row_at(const struct skim_rows* rows, int64_t byte) {
  if (byte <= 0) return 0;
  const int64_t row = (byte + rows->bytes - 1) / rows->bytes;
  return row < rows->count ? (int32_t)row : rows->count;
}

static void add_bias(const float* bias, const int32_t* row_index, struct skim_range rows, float* y) {
  for (int32_t row = rows.begin; row < rows.end; ++row) y[row_index[row]] += bias[row_index[row]];
}

// Computes a part of the rows for some tokens. Parts have equal bytes of codes, as a row costs what its width is.
static void multiply(const struct skim_session* session, const struct skim_linear* linear, int32_t part, int32_t parts,
                     const void* x, float* y, int32_t tokens, int32_t stride) {
  const float* bias = skim_tensor(session, linear->bias);
  int64_t total = 0;
  for (int32_t c = 0; c < linear->class_count; ++c) {
    total += (int64_t)linear->classes[c].count * linear->classes[c].bytes;
  }
  int64_t begin = total * part / parts, end = total * (part + 1) / parts;
  for (int32_t c = 0; c < linear->class_count; ++c) {
    const struct skim_rows* rows = &linear->classes[c];
    const struct skim_range share = {row_at(rows, begin), row_at(rows, end)};
    if (share.begin < share.end) {
      const int32_t* row_index = skim_tensor(session, rows->row_index);
      rows->matmul(skim_tensor(session, rows->codes), skim_tensor(session, rows->codebook),
                   skim_tensor(session, rows->row_scale), row_index, x, y, tokens, linear->K, stride, share.begin,
                   share.end);
      for (int32_t token = 0; bias && token < tokens; ++token) {
        add_bias(bias, row_index, share, y + (ptrdiff_t)token * stride);
      }
    }
    begin -= (int64_t)rows->count * rows->bytes;
    end -= (int64_t)rows->count * rows->bytes;
  }
}

void skim_product(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  const struct skim_session* session = thread->session;
  const int32_t stride = skim_model.buffers[op->out[0]].row_bytes / (int32_t)sizeof(float);
  const void* x = skim_row(thread, op->in[0], tokens.begin);
  float* y = skim_row(thread, op->out[0], tokens.begin);
  // Threads take small parts, so that faster cores, and those that nothing else runs on, take more of them.
  const int32_t parts = session->threads == 1 ? 1 : 4 * session->threads;
  atomic_int* taken = &session->taken[op - skim_model.operators];
  for (int32_t part; (part = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed)) < parts;) {
    multiply(session, &skim_model.linears[op->index], part, parts, x, y, tokens.end - tokens.begin, stride);
  }
}

static void swiglu(const float* restrict gate, const float* restrict up, float* restrict y, struct skim_range columns) {
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = gate[i] / (1.0f + skim_exp(-gate[i])) * up[i];
}

static void mul(const float* restrict a, const float* restrict b, float* restrict y, struct skim_range columns) {
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = a[i] * b[i];
}

static void scale(const float* restrict x, float factor, float* restrict y, struct skim_range columns) {
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = x[i] * factor;
}

static void relu(const float* restrict x, float* restrict y, struct skim_range columns) {
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = x[i] > 0 ? x[i] : 0;
}

static void gelu(const float* restrict x, float* restrict y, struct skim_range columns) {
  const float sqrt_half = 0.70710678f;
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * sqrt_half));
}

static void gelu_tanh(const float* restrict x, float* restrict y, struct skim_range columns) {
  const float sqrt_2_over_pi = 0.79788456f;
  for (int32_t i = columns.begin; i < columns.end; ++i) {
    y[i] = 0.5f * x[i] * (1.0f + tanhf(sqrt_2_over_pi * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
  }
}

static void hyperbolic_tangent(const float* restrict x, float* restrict y, struct skim_range columns) {
  for (int32_t i = columns.begin; i < columns.end; ++i) y[i] = tanhf(x[i]);
}

void skim_elementwise(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens) {
  const struct skim_buffer* out = &skim_model.buffers[op->out[0]];
  struct skim_range columns = {0, out->width};
  if (out->own) {
    tokens = own_tokens(thread, tokens);
  } else {
    columns = skim_share(thread, out->width);
  }
  for (int32_t token = tokens.begin; token < tokens.end; ++token) {
    const float* x = skim_row(thread, op->in[0], token);
    float* y = skim_row(thread, op->out[0], token);
    if (op->kind == SKIM_SWIGLU) swiglu(x, skim_row(thread, op->in[1], token), y, columns);
    if (op->kind == SKIM_ADD) add(x, skim_row(thread, op->in[1], token), y, columns);
    if (op->kind == SKIM_MUL) mul(x, skim_row(thread, op->in[1], token), y, columns);
    if (op->kind == SKIM_SCALE) scale(x, op->factor, y, columns);
    if (op->kind == SKIM_RELU) relu(x, y, columns);
    if (op->kind == SKIM_GELU) gelu(x, y, columns);
    if (op->kind == SKIM_GELU_TANH) gelu_tanh(x, y, columns);
    if (op->kind == SKIM_TANH) hyperbolic_tangent(x, y, columns);
  }
}
