// One of the rows that the solver is given.
#pragma once

#include <cstdint>

#include "solver.h"

namespace skim {

struct Row {
  Row(const SkimRows& rows, int64_t index)
      : values(rows.values + index * rows.columns),
        weights(rows.weights ? rows.weights + index * rows.columns : nullptr),
        column_scale(rows.column_scale),
        columns(rows.columns) {}

  double Weight(int32_t k) const { return weights ? weights[k] : 1; }

  const float* values;
  const float* weights;
  const float* column_scale;
  int32_t columns;
};

}  // namespace skim
