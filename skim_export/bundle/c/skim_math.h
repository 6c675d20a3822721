// Loops and functions in plain arithmetic that compilers make vectors of, without being allowed to reorder sums.
#pragma once

#include <stdint.h>
#include <string.h>

enum { SKIM_SUMS = 16 };  // partial sums: four registers of NEON, two of AVX2

static inline float skim_sum(const float* partial) {
  float sums[SKIM_SUMS];
  memcpy(sums, partial, sizeof sums);
  for (int width = SKIM_SUMS / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[width + i];
  }
  return sums[0];
}

static inline float skim_dot(const float* restrict a, const float* restrict b, int32_t count) {
  float sums[SKIM_SUMS] = {0};
  int32_t i = 0;
  for (; i + SKIM_SUMS <= count; i += SKIM_SUMS) {
    for (int j = 0; j < SKIM_SUMS; ++j) sums[j] += a[i + j] * b[i + j];
  }
  for (int j = 0; i + j < count; ++j) sums[j] += a[i + j] * b[i + j];
  return skim_sum(sums);
}

static inline float skim_max(const float* x, int32_t count) {
  float most[SKIM_SUMS];
  for (int j = 0; j < SKIM_SUMS; ++j) most[j] = x[0];
  int32_t i = 0;
  for (; i + SKIM_SUMS <= count; i += SKIM_SUMS) {
    for (int j = 0; j < SKIM_SUMS; ++j) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
  }
  for (; i < count; ++i) most[0] = x[i] > most[0] ? x[i] : most[0];
  for (int j = 1; j < SKIM_SUMS; ++j) most[0] = most[j] > most[0] ? most[j] : most[0];
  return most[0];
}

// e^x, with a relative error of less than 2e-7, for x in -87..88; beyond, as at the nearer end.
static inline float skim_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // x = n ln 2 + r. Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
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
  const int32_t exponent = (int32_t)((uint32_t)(bits - 0x4b400000 + 127) << 23);
  float power;
  memcpy(&power, &exponent, sizeof power);
  return series * power;
}
