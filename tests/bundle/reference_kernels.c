// The kernels of all row classes, written as docs/format.md says it, for tests of the runtime and of fast kernels.
#include <stdint.h>
#include <string.h>

enum kind { TABLE_INT8, TABLE_FLOAT16, AFFINE };

// `count` bits from `bit` on of a lane's byte in vector `v`.
#define BITS(v, bit, count) ((lane[(v) * W] >> (bit)) & ((1 << (count)) - 1))

// The code of column k, or its window where there is a memory.
static int code_at(const uint8_t* row, int b, int memory, int K, int k) {
  const int base = k / 256 * 256, rest = K - base;
  const int W = rest < 256 ? 4 * ((rest + 31) / 32) : 32;
  const int j = (k - base) / W, i = (k - base) % W;
  const uint8_t* lane = row + base / 8 * b + i;
  if (memory > 0) {
    int window = 0;
    for (int t = 0; t < b + memory; ++t) {
      const int bit = (b * (j + 8) - memory + t) % (8 * b);
      window |= BITS(bit / 8, bit % 8, 1) << t;
    }
    return window;
  }
  switch (b) {
    case 1:
      return BITS(0, j, 1);
    case 2:
      return BITS(j / 4, 2 * (j % 4), 2);
    case 3:
      return j < 6 ? BITS(j / 2, 3 * (j % 2), 3) : BITS(j - 6, 6, 2) | BITS(2, j, 1) << 2;
    case 4:
      return BITS(j / 2, 4 * (j % 2), 4);
    case 5:
      return BITS(j / 2, 4 * (j % 2), 4) | BITS(4, j, 1) << 4;
    case 6:
      return BITS(j / 2, 4 * (j % 2), 4) | BITS(4 + j / 4, 2 * (j % 4), 2) << 4;
    case 7:
      return BITS(j / 2, 4 * (j % 2), 4) | BITS(4 + j / 4, 2 * (j % 4), 2) << 4 | BITS(6, j, 1) << 6;
    default:
      return lane[j * W];
  }
}

static float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  float value = (float)(exponent ? 1024 + fraction : fraction);  // times 2^(exponent - 25), of subnormals 2^-24
  for (int i = exponent ? exponent : 1; i < 25; ++i) value *= 0.5f;
  for (int i = 25; i < exponent; ++i) value *= 2.0f;
  return half >> 15 ? -value : value;
}

static float level(enum kind kind, int b, int memory, const void* codebook, const float* row_scale, int row, int code) {
  if (kind == AFFINE) return row_scale[2 * row + 1] + row_scale[2 * row] * (float)(code - (1 << (b - 1)));
  const int entries = 1 << (b + memory - (memory > 0));  // of windows those of the lower half
  const int upper = code >= entries;
  const int64_t entry = (int64_t)row * entries + (upper ? 2 * entries - 1 - code : code);
  const float sign = upper ? -1.0f : 1.0f;
  if (kind == TABLE_INT8) return sign * row_scale[row] * (float)((const int8_t*)codebook)[entry];
  return sign * half_to_float(((const uint16_t*)codebook)[entry]);
}

static int64_t row_bytes(int b, int K) { return (int64_t)b * 4 * ((K + 31) / 32); }

static int64_t prepared_floats(int K) { return (((int64_t)K + 31) / 32 * 32 + 1 + 15) / 16 * 16; }

static void gather(enum kind kind, int b, int memory, const uint8_t* codes, const void* codebook,
                   const float* row_scale, float* y, int K, int row) {
  const uint8_t* row_codes = codes + row * row_bytes(b, K);
  for (int k = 0; k < K; ++k) {
    y[k] = level(kind, b, memory, codebook, row_scale, row, code_at(row_codes, b, memory, K, k));
  }
}

static void matmul(enum kind kind, int b, int memory, const uint8_t* codes, const void* codebook,
                   const float* row_scale, const int32_t* row_index, const float* x, float* y, int M, int K,
                   int y_stride, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    const uint8_t* row_codes = codes + row * row_bytes(b, K);
    double sums[64];
    for (int first = 0; first < M; first += 64) {
      const int count = M - first < 64 ? M - first : 64;
      memset(sums, 0, sizeof sums);
      for (int k = 0; k < K; ++k) {
        const float weight = level(kind, b, memory, codebook, row_scale, row, code_at(row_codes, b, memory, K, k));
        for (int m = 0; m < count; ++m) sums[m] += (double)weight * (double)x[(first + m) * prepared_floats(K) + k];
      }
      for (int m = 0; m < count; ++m) y[(int64_t)(first + m) * y_stride + row_index[row]] = (float)sums[m];
    }
  }
}

void skim_prepare(const float* x, const float* column_scale, void* prepared, int32_t M, int32_t K) {
  const int64_t floats = prepared_floats(K);
  for (int m = 0; m < M; ++m) {
    float* out = (float*)prepared + m * floats;
    float sum = 0;
    memset(out, 0, sizeof *out * (size_t)floats);
    for (int k = 0; k < K; ++k) sum += out[k] = x[(int64_t)m * K + k] * column_scale[k];
    out[(K + 31) / 32 * 32] = sum;
  }
}

// Any form of prepared tokens will do, this one as well as another.
void skim_prepare_integer(const float* x, const float* column_scale, void* prepared, int32_t M, int32_t K) {
  skim_prepare(x, column_scale, prepared, M, K);
}

#define KERNELS(name, kind, b, memory)                                                                               \
  void skim_matmul_##name(const uint8_t* codes, const void* codebook, const float* row_scale,                        \
                          const int32_t* row_index, const void* x, float* y, int32_t M, int32_t K, int32_t y_stride, \
                          int32_t begin, int32_t end) {                                                              \
    matmul(kind, b, memory, codes, codebook, row_scale, row_index, x, y, M, K, y_stride, begin, end);                \
  }                                                                                                                  \
  void skim_gather_##name(const uint8_t* codes, const void* codebook, const float* row_scale, float* y, int32_t K,   \
                          int32_t row) {                                                                             \
    gather(kind, b, memory, codes, codebook, row_scale, y, K, row);                                                  \
  }

#define WIDTH(b)                                   \
  KERNELS(table##b##_int8, TABLE_INT8, b, 0)       \
  KERNELS(table##b##_float16, TABLE_FLOAT16, b, 0) \
  KERNELS(affine##b, AFFINE, b, 0)

#define WINDOW(b, memory)                                     \
  KERNELS(window##b##_##memory##_int8, TABLE_INT8, b, memory) \
  KERNELS(window##b##_##memory##_float16, TABLE_FLOAT16, b, memory)

WIDTH(1)
WIDTH(2)
WIDTH(3)
WIDTH(4)
WIDTH(5)
WIDTH(6)
WIDTH(7)
WIDTH(8)
WINDOW(1, 2)
WINDOW(1, 3)
WINDOW(2, 1)
WINDOW(2, 2)
WINDOW(3, 1)
WINDOW(4, 1)
