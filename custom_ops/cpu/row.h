// What the kernels of all instruction sets know of a row beside its codes. `static`, as they must not share code.
#pragma once

#include <cstdint>

#include "half.h"
#include "skim/packed.h"

namespace skim {

// What a token's product with a row, sum_k level * x with unscaled levels, becomes before it is stored.
struct RowEnd {
  float scale, offset, bias;
  int64_t n;  // original row
};

static inline RowEnd MakeRowEnd(const Layer& layer, const RowRun& run, int64_t row) {
  const bool affine = IsAffine(run.row_class);
  RowEnd end;
  end.scale = run.row_scale ? HalfToFloat(run.row_scale[affine ? 2 * row : row]) : 1.0f;
  end.offset = affine ? HalfToFloat(run.row_scale[2 * row + 1]) : 0.0f;
  end.n = layer.destination ? layer.destination[run.first + row] : run.first + row;
  end.bias = layer.weights.bias.size ? layer.weights.bias.data[end.n] : 0.0f;
  return end;
}

// `sum`: of the token's x.
static inline float Finish(const RowEnd& end, float product, float sum) {
  return product * end.scale + (end.offset * sum + end.bias);
}

// The run of a stored row, looked for from `run` on.
static inline const RowRun* RunOf(const RowRun* run, int64_t stored) {
  while (stored >= run->first + run->count) ++run;
  return run;
}

}  // namespace skim
