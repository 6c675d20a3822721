// float16 <-> float32 in plain integer arithmetic, or by the instruction where the file is compiled for CPUs with one;
// elements of tensors that may have either type.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "skim/kernels.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace skim {

static inline float HalfToFloat(uint16_t half) {
#ifdef __F16C__
  return _cvtsh_ss(half);
#elif defined(__aarch64__)
  __fp16 value16;
  std::memcpy(&value16, &half, sizeof half);
  return value16;
#endif
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t exponent = (half >> 10) & 0x1f;
  uint32_t mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent == 0 && mantissa == 0) {
    bits = sign;
  } else {
    if (exponent == 0) {  // subnormal: shift the leading one into its place
      exponent = 1;
      while (!(mantissa & 0x400)) {
        mantissa <<= 1;
        --exponent;  // wraps below zero, the sum below comes out right
      }
      mantissa &= 0x3ff;
    }
    bits = sign | (exponent + (127 - 15)) << 23 | mantissa << 13;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest, ties to even; too large values become infinite.
static inline uint16_t FloatToHalf(float value) {
#ifdef __F16C__
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  const auto value16 = static_cast<__fp16>(value);
  uint16_t half;
  std::memcpy(&half, &value16, sizeof half);
  return half;
#endif
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;   // not a number
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  const int exponent = static_cast<int>(bits >> 23) - 127;
  if (exponent < -25) return sign;
  const uint32_t mantissa = (bits & 0x7fffff) | 0x800000;
  // Bits to drop, and the exponent field without the mantissa's leading one, which is added along with the mantissa.
  const int drop = exponent < -14 ? -exponent - 1 : 13;
  const uint32_t field = exponent < -14 ? 0 : exponent + 14;
  const uint32_t half_way = 1u << (drop - 1);
  const uint32_t rounded = (mantissa + half_way - 1 + ((mantissa >> drop) & 1)) >> drop;
  return static_cast<uint16_t>(sign | ((field << 10) + rounded));
}

static inline bool HalfIsFinite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

static SKIM_INLINE float LoadFloat(const void* data, FloatType type, int64_t i) {
  return type == FloatType::kFloat32 ? static_cast<const float*>(data)[i]
                                     : HalfToFloat(static_cast<const uint16_t*>(data)[i]);
}

static SKIM_INLINE void StoreFloat(void* data, FloatType type, int64_t i, float value) {
  if (type == FloatType::kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] = FloatToHalf(value);
  }
}

}  // namespace skim
