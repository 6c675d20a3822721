// One row of a layer.
#pragma once

#include <cstdint>

#include "solver.h"

namespace skim {

struct Row {
  Row(const SkimLayer& layer, int64_t index)
      : values(layer.values + index * layer.columns),
        weights(layer.weights ? layer.weights + index * layer.columns : nullptr),
        column_scale(layer.column_scale),
        columns(layer.columns) {}

  double Weight(int32_t k) const { return weights ? weights[k] : 1; }

  const float* values;
  const float* weights;
  const float* column_scale;
  int32_t columns;
};

}  // namespace skim
