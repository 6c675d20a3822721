// The SwiGLU product in plain arithmetic that compilers make vectors of: the same bits on all CPUs. `static`, as the
// files of the kernels must not share code.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "skim/kernels.h"

namespace skim {

// e^x, with a relative error of less than 2e-7, for x in -87..88; beyond, as at the nearer end.
static inline float Exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // x = n ln 2 + r. Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // The Taylor series of degree 7; |r| is at most ln 2 / 2.
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(static_cast<uint32_t>(bits - 0x4b400000 + 127) << 23);
  float power;
  std::memcpy(&power, &exponent, sizeof power);
  return series * power;
}

static inline float SiluProduct(float gate, float up) { return gate / (1.0f + Exp(-gate)) * up; }

static inline void Swiglu(const float* gates, const float* ups, int64_t count, void* y, FloatType type) {
  if (type == FloatType::kFloat32) {
    auto* out = static_cast<float*>(y);
    for (int64_t i = 0; i < count; ++i) out[i] = SiluProduct(gates[i], ups[i]);
  } else {
    auto* out = static_cast<uint16_t*>(y);
    for (int64_t i = 0; i < count; ++i) out[i] = FloatToHalf(SiluProduct(gates[i], ups[i]));
  }
}

}  // namespace skim
