// The C interface of the solver, bound by skim_export/quantize/solver.py.
//
// A layer is `row` [rows, columns], row-major, with weights of the same shape (nullptr: all 1) and a positive scale per
// column. What is stored for a weight is level * column_scale, with the level found by a code. Every function returns
// false if memory runs out, and gives the same bits for any number of threads (`threads` at least 1).
#pragma once

#include <cstdint>

struct SkimLayer {
  const float* values;        // [rows, columns]
  const float* weights;       // [rows, columns], at least 0; or nullptr
  const float* column_scale;  // [columns], positive
  int64_t rows;
  int32_t columns;
};

#define SKIM_EXPORT extern "C" __attribute__((visibility("default")))

// Weighted error of the optimal codebooks with 2, 4, ... 2^max_bits entries, errors [rows, max_bits].
SKIM_EXPORT bool skim_error_curves(const SkimLayer* layer, int32_t max_bits, int32_t threads, double* errors);

// Optimal codebooks of bits[row] bits: centroids and the weight they carry [rows, stride], codes [rows, columns].
SKIM_EXPORT bool skim_kmeans(const SkimLayer* layer, const uint8_t* bits, int32_t stride, int32_t threads,
                             float* centroids, float* mass, uint8_t* codes);

// Nearest of the ascending levels [rows, stride]: codes [rows, columns] and the weighted error of each row [rows].
SKIM_EXPORT bool skim_assign(const SkimLayer* layer, const uint8_t* bits, const float* levels, int32_t stride,
                             int32_t threads, uint8_t* codes, double* errors);

// Nearest of the affine levels offset[row] + scale[row] * (code - 2^(bits[row] - 1)): codes [rows, columns], the
// weighted error of each row [rows], and the scale and offset [rows] that are optimal for these codes.
SKIM_EXPORT bool skim_assign_affine(const SkimLayer* layer, const uint8_t* bits, const float* scale,
                                    const float* offset, int32_t threads, uint8_t* codes, double* errors,
                                    double* best_scale, double* best_offset);

// With the codes held fixed: centroids become the weighted means, errors [rows] their errors, and
// numerator / denominator [columns] the column scale that is optimal for these centroids. Centroids [rows, stride] that
// carry no weight are left as they are.
SKIM_EXPORT bool skim_refit(const SkimLayer* layer, const uint8_t* bits, const uint8_t* codes, int32_t stride,
                            int32_t threads, float* centroids, double* numerator, double* denominator, double* errors);
