// The program of a model: constant tables that the runtime interprets. skim_model.c defines them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// The kernels of a row class; skim_kernels.h describes their arguments.
typedef void skim_matmul(const uint8_t* codes, const void* codebook, const float* row_scale, const int32_t* row_index,
                         const void* x, float* y, int32_t M, int32_t K, int32_t y_stride, int32_t begin, int32_t end);
typedef void skim_gather(const uint8_t* codes, const void* codebook, const float* row_scale, float* y, int32_t K,
                         int32_t row);

// Offsets of tensors in weights.bin. No tensor lies at 0, where the file has its header: 0 means that there is none.
typedef uint64_t skim_offset;

// The rows of a packed linear that are of one class.
struct skim_rows {
  skim_matmul* matmul;
  skim_gather* gather;
  int32_t count;
  int32_t bytes;  // of a row's codes
  skim_offset codes;
  skim_offset codebook;
  skim_offset row_scale;
  skim_offset row_index;
};

struct skim_linear {
  int32_t N, K;
  bool integer;  // arithmetic of its kernels
  const struct skim_rows* classes;
  int32_t class_count;
  skim_offset column_scale;  // [K]
  skim_offset bias;          // [N]
  skim_offset stored_row;    // [N]: place of each row among the stored ones; none if they are in their own order
};

struct skim_attention {
  int32_t heads, kv_heads, head_size;
  int32_t rotary_size;    // leading channels of a head that are rotated, maybe 0
  bool interleaved;       // whether channels 2i and 2i+1 are rotated, or else i and rotary_size / 2 + i
  int32_t window;         // the last so many positions are seen, this one among them; 0: all
  float scale;            // of the scores
  float softcap;          // scores become softcap * tanh(score / softcap); 0: they stay
  skim_offset cos_cache;  // [positions][rotary_size / 2]
  skim_offset sin_cache;
};

// Activations: a row for each token of a step, or for its last token only. A buffer that is cheap to compute is `own`:
// where it has one row, every thread computes it for itself, which spares a barrier. Some columns of a buffer are a
// buffer, too.
struct skim_buffer {
  int32_t width;      // elements of a row
  int32_t row_bytes;  // from one row to the next, a multiple of 64
  bool last_only;
  uint32_t shared_offset;  // into the memory of all threads
  bool own;
  uint32_t own_offset;  // into that of each thread
};

enum skim_kind {
  SKIM_EMBED,      // out 0 = rows `index` of the linear, one for each token id
  SKIM_NORM,       // out 0 = in 0 / rms(in 0) * weight, for each run of `channels` columns
  SKIM_ADD_NORM,   // out 1 = in 0 + in 1, out 0 = its norm
  SKIM_PREPARE,    // out 0 = in 0 in the form that the kernels want, for linear `index`
  SKIM_PRODUCT,    // out 0 = linear `index` times the prepared in 0, plus its bias
  SKIM_ATTENTION,  // out 0 = attention `index` on the queries in 0, keys in 1 and values in 2
  SKIM_SWIGLU,     // out 0 = silu(in 0) * in 1
  SKIM_ADD,        // out 0 = in 0 + in 1
  SKIM_MUL,        // out 0 = in 0 * in 1
  SKIM_SCALE,      // out 0 = in 0 * factor
  SKIM_RELU,
  SKIM_GELU,
  SKIM_GELU_TANH,
  SKIM_TANH,
};

// When an operator waits until all threads have ended those before it.
enum skim_barrier_when { SKIM_NEVER, SKIM_IF_MANY_TOKENS, SKIM_ALWAYS };

struct skim_operator {
  enum skim_kind kind;
  enum skim_barrier_when barrier;
  bool last_only;  // computed for the last token of a step
  int16_t in[3];   // buffers
  int16_t out[2];
  int16_t index;       // of a linear or an attention
  skim_offset weight;  // [channels] of a norm
  int32_t channels;
  float epsilon;
  float factor;
};

struct skim_model {
  const char* target;
  uint8_t header[64];     // of weights.bin
  uint64_t weights_size;  // bytes of weights.bin
  uint64_t read_bytes;    // bytes of packed weights that are multiplied for each token
  int32_t vocabulary;
  int32_t context;  // positions that the model was made for
  int32_t chunk;    // tokens of a prompt that are computed at once
  const int32_t* eos;
  int32_t eos_count;
  const struct skim_linear* linears;
  int32_t linear_count;
  const struct skim_attention* attentions;
  int32_t attention_count;
  const struct skim_buffer* buffers;
  const struct skim_operator* operators;
  int32_t operator_count;
  int16_t logits;         // their buffer
  uint32_t shared_bytes;  // of the buffers of all threads
  uint32_t own_bytes;     // of those of each thread
};

extern const struct skim_model skim_model;
