// The C interface of the solver, bound by skim_export/quantize/solver.py.
//
// It is given rows of a linear, values [rows, columns], row-major, with weights of their squared errors in the same
// shape (nullptr: all 1) and a positive scale per column. What is stored for a weight is level * column_scale, with the
// level found by a code. Every function returns false if memory runs out, and gives the same bits for any number of
// threads (`threads` at least 1).
#pragma once

#include <cstdint>

struct SkimRows {
  const float* values;        // [rows, columns]
  const float* weights;       // [rows, columns], at least 0; or nullptr
  const float* column_scale;  // [columns], positive
  int64_t count;              // rows
  int32_t columns;
};

#define SKIM_EXPORT extern "C" __attribute__((visibility("default")))

// What callers have to know of the solver.
SKIM_EXPORT int32_t skim_most_bits();      // of a row
SKIM_EXPORT int32_t skim_rows_together();  // of one thread in `skim_feedback` and `skim_refine`; fewer cost more each
SKIM_EXPORT double skim_cluster_floor();   // in clustering a weight counts so many times its row's mean at least
SKIM_EXPORT double skim_refine_floor();    // in feedback and refinement
SKIM_EXPORT double skim_refine_ridge();    // of the mean diagonal: levels that no code uses stay where they are
// Working memory of `skim_refine`, bytes, at most, for many rows of so many bits.
SKIM_EXPORT int64_t skim_refine_bytes(int32_t columns, int32_t bits, int32_t threads);

// Weighted error of the optimal codebooks with 2, 4, ... 2^max_bits entries, errors [rows, max_bits].
SKIM_EXPORT bool skim_error_curves(const SkimRows* rows, int32_t max_bits, int32_t threads, double* errors);

// Optimal codebooks of bits[row] bits: centroids and the weight they carry [rows, stride], codes [rows, columns].
// Optimal but for this: clusters begin at one of about `points` places among the sorted weights of a row; 0 for any.
SKIM_EXPORT bool skim_kmeans(const SkimRows* rows, const uint8_t* bits, int32_t stride, int32_t points, int32_t threads,
                             float* centroids, float* mass, uint8_t* codes);

// Nearest of the ascending levels [rows, stride]: codes [rows, columns] and the weighted error of each row [rows].
SKIM_EXPORT bool skim_assign(const SkimRows* rows, const uint8_t* bits, const float* levels, int32_t stride,
                             int32_t threads, uint8_t* codes, double* errors);

// Nearest of the affine levels offset[row] + scale[row] * (code - 2^(bits[row] - 1)): codes [rows, columns], the
// weighted error of each row [rows], and the scale and offset [rows] that are optimal for these codes.
SKIM_EXPORT bool skim_assign_affine(const SkimRows* rows, const uint8_t* bits, const float* scale, const float* offset,
                                    int32_t threads, uint8_t* codes, double* errors, double* best_scale,
                                    double* best_offset);

// With the codes held fixed: centroids become the weighted means, errors [rows] their errors, and
// numerator / denominator [columns] the column scale that is optimal for these centroids. Centroids [rows, stride] that
// carry no weight are left as they are.
SKIM_EXPORT bool skim_refit(const SkimRows* rows, const uint8_t* bits, const uint8_t* codes, int32_t stride,
                            int32_t threads, float* centroids, double* numerator, double* denominator, double* errors);

// The full objective of a row is (w - c[q] a)^T diag(s)^1/2 C diag(s)^1/2 (w - c[q] a), with the row's weights s and
// a correlation C [columns, columns]: symmetric, positive definite, 1 on its diagonal. With C = 1 it is the error
// above.
//
// `memory` nullptr: codes are free, and levels [rows, stride] ascending in the first 2^bits[row]. Otherwise codes are
// windows (docs/format.md) of bits[row], at most 5, and the lowest memory[row] of these, 1 to 3, are the top ones of
// the column before; eight columns after the other, from a multiple of eight on, are a lane, in a circle.

// Codes by error feedback, codes [rows, columns]. `factor` is the upper Cholesky factor of the inverse of C; nullptr,
// for windows alone: C = 1.
SKIM_EXPORT bool skim_feedback(const SkimRows* rows, const float* factor, const uint8_t* bits, const uint8_t* memory,
                               float* levels, int32_t stride, int32_t threads, uint8_t* codes);

// `rounds` times: the optimal levels for the codes, if `fit`, then up to `sweeps` sweeps of coordinate descent over the
// codes. Levels [rows, stride] and codes [rows, columns] are changed in place; errors [rows] are those of the result.
SKIM_EXPORT bool skim_refine(const SkimRows* rows, const float* correlation, const uint8_t* bits, const uint8_t* memory,
                             int32_t stride, int32_t rounds, int32_t sweeps, bool fit, int32_t threads, float* levels,
                             uint8_t* codes, double* errors);
