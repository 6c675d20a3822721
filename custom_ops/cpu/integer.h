// What the integer paths of all instruction sets share: how activations become integers, and what a row's sum becomes.
//
// A token x (column scale included) is rounded to 16 bits,
//
//     q[k] = round(x[k] / scale)        scale = max |x| / 32512
//
// which is 256 times finer than int8. Instructions that multiply bytes take it as two digits to the base 255,
//
//     q = 255 * high + low              high and low in -127..127
//
// A level is an int8 value e: the codebook's entry, or code - 2^(b-1) of an affine row. The sum over a row,
//
//     D = sum_k e[k] * q[k] = 255 * sum_k e[k] * high[k] + sum_k e[k] * low[k]
//
// is exact, however it is added up. So all instruction sets give the same result to the last bit.
//
// Every function here is `static`: the files of the kernels are compiled for different CPUs, and must not share code.
#pragma once

#include <cstdint>
#include <cstring>

#include "row.h"
#include "skim/kernels.h"

namespace skim {

static constexpr int kDigitBase = 255;
static constexpr float kMaxQuantized = 127 * kDigitBase + 127;

// What a quantized token means: x = scale * q; `sum` of all its x, and of its digits.
struct IntegerToken {
  float scale, sum;
  int32_t high_sum, low_sum;
};

// The whole number nearest to a float of less than 2^22, in that float, where `FloatBits` minus `kRounding`'s bits is
// the number itself. Plain arithmetic, so that compilers make vectors of it.
static constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23
static inline int32_t FloatBits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
static constexpr int32_t kRoundingBits = 0x4b400000;

// The scale of a token of `count` floats. Not finite if one of them is not, and then so are all its products.
static inline float QuantizationScale(const float* x, int64_t count) {
  int32_t largest = 0;  // floats without their signs compare as integers, and no number is less than a NaN
  for (int64_t k = 0; k < count; ++k) {
    const int32_t magnitude = FloatBits(x[k]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  float maximum;
  std::memcpy(&maximum, &largest, sizeof maximum);
  return maximum / kMaxQuantized;
}

static inline float InverseScale(float scale) { return scale > 0 ? 1.0f / scale : 0.0f; }

static inline int32_t Quantize(float x, float inverse_scale) {
  return static_cast<int32_t>(static_cast<uint32_t>(FloatBits(x * inverse_scale + kRounding)) - kRoundingBits);
}

// Quantizes `count` floats, at most kMaxIntegerColumns.
static inline IntegerToken QuantizeToken(const float* x, int64_t count, int8_t* high, int8_t* low) {
  const float scale = QuantizationScale(x, count), inverse = InverseScale(scale);
  int32_t high_sum = 0, low_sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int32_t q = Quantize(x[k], inverse);
    const int32_t h = Quantize(static_cast<float>(q), 1.0f / kDigitBase);
    const int32_t l = q - kDigitBase * h;
    high[k] = static_cast<int8_t>(h);
    low[k] = static_cast<int8_t>(l);
    high_sum += static_cast<int8_t>(h);
    low_sum += static_cast<int8_t>(l);
  }
  return {scale, scale * static_cast<float>(kDigitBase * high_sum + low_sum), high_sum, low_sum};
}

// The same with q as it is; `low_sum` is the sum of q, and `high_sum` 0.
static inline IntegerToken QuantizeToken(const float* x, int64_t count, int16_t* q) {
  const float scale = QuantizationScale(x, count), inverse = InverseScale(scale);
  int32_t sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    q[k] = static_cast<int16_t>(Quantize(x[k], inverse));
    sum += q[k];
  }
  return {scale, scale * static_cast<float>(sum), 0, sum};
}

// D from the sums over the digits.
static inline double SumOfDigits(int32_t high, int32_t low) { return double{kDigitBase} * high + low; }

// A prepared token: its meaning in the first kAlignment bytes, then 16 bits for each column, in the form and order that
// the kernel reads.
static constexpr int64_t IntegerBytes(int64_t K) { return kAlignment + 2 * PaddedColumns(K); }

static inline IntegerToken MeaningOf(const void* prepared) {
  IntegerToken token;
  std::memcpy(&token, prepared, sizeof token);
  return token;
}

// The result of a row for a token; `end` is the row's.
static inline float FinishInteger(RowEnd end, double D, const IntegerToken& token) {
  end.scale *= token.scale;
  return Finish(end, static_cast<float>(D), token.sum);
}

}  // namespace skim
