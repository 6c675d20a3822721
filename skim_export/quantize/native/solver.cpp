#include "solver.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "row_kmeans.h"
#include "row_refine.h"

namespace skim {
namespace {

// One row of a layer.
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

// Codes of the nearest levels; returns the weighted error of what is stored.
double Assign(const Row& row, const float* levels, int32_t count, float* scaled, int32_t* counts, uint8_t* codes) {
  for (int32_t k = 0; k < row.columns; k++) scaled[k] = row.values[k] / row.column_scale[k];
  std::fill_n(counts, row.columns, 0);
  for (int32_t l = 1; l < count; l++) {  // the code is the number of midpoints below
    const float middle = 0.5f * (levels[l - 1] + levels[l]);
    for (int32_t k = 0; k < row.columns; k++) counts[k] += scaled[k] > middle;
  }
  double error = 0;
  for (int32_t k = 0; k < row.columns; k++) {
    codes[k] = static_cast<uint8_t>(counts[k]);
    const float stored = levels[counts[k]] * row.column_scale[k];
    const double difference = static_cast<double>(row.values[k]) - stored;
    error += row.Weight(k) * difference * difference;
  }
  return error;
}

struct AffineFit {
  double error, scale, offset;
};

AffineFit AssignAffine(const Row& row, int32_t bits, float scale, float offset, uint8_t* codes) {
  const float half = 1 << (bits - 1), top = 2 * half - 1;
  const float inverse = scale > 0 ? 1 / scale : 0;
  double error = 0, sum = 0, sum_q = 0, sum_qq = 0, sum_v = 0, sum_qv = 0;
  for (int32_t k = 0; k < row.columns; k++) {
    const float a = row.column_scale[k], value = row.values[k] / a;
    const float code = std::floor(std::min(std::max((value - offset) * inverse + half + 0.5f, 0.0f), top));
    codes[k] = static_cast<uint8_t>(code);
    const float stored = (offset + scale * (code - half)) * a;
    const double difference = static_cast<double>(row.values[k]) - stored;
    error += row.Weight(k) * difference * difference;
    const double s = row.Weight(k) * a * a, q = code - half;
    sum += s;
    sum_q += s * q;
    sum_qq += s * q * q;
    sum_v += s * value;
    sum_qv += s * q * value;
  }
  const double determinant = sum * sum_qq - sum_q * sum_q;
  if (!(determinant > 1e-9 * sum * sum_qq)) return {error, scale, offset};  // fewer than two codes that count
  const double best = (sum * sum_qv - sum_q * sum_v) / determinant;
  return {error, std::max(best, 0.0), (sum_v - best * sum_q) / sum};
}

// Working memory of Refit: two sums per centroid.
struct Sums {
  double weight[256], moment[256];
};

double Refit(const Row& row, const uint8_t* codes, int32_t count, Sums* sums, float* centroids, double* numerator,
             double* denominator) {
  std::fill_n(sums->weight, count, 0.0);
  std::fill_n(sums->moment, count, 0.0);
  for (int32_t k = 0; k < row.columns; k++) {
    const double a = row.column_scale[k], s = row.Weight(k) * a;
    sums->weight[codes[k]] += s * a;
    sums->moment[codes[k]] += s * row.values[k];
  }
  for (int32_t c = 0; c < count; c++) {
    if (sums->weight[c] > 0) centroids[c] = static_cast<float>(sums->moment[c] / sums->weight[c]);
  }
  double error = 0;
  for (int32_t k = 0; k < row.columns; k++) {
    const double c = centroids[codes[k]], s = row.Weight(k);
    const double difference = row.values[k] - c * row.column_scale[k];
    numerator[k] += s * c * row.values[k];
    denominator[k] += s * c * c;
    error += s * difference * difference;
  }
  return error;
}

// Rows in the form that refinement takes, with their working memory: v = sqrt(s) w, u = sqrt(s) a.
class RowsTogether {
 public:
  RowsTogether(int32_t columns, int32_t stride)
      : columns_(columns),
        vectors_(size_t{4} * kRowsTogether * columns),
        products_(size_t{kRowsTogether} * stride * columns),
        systems_(size_t{kRowsTogether} * stride * (stride + 1)) {
    for (int32_t r = 0; r < kRowsTogether; r++) {
      float* vectors = vectors_.data() + size_t{4} * r * columns;
      rows_[r].target = vectors;
      rows_[r].pull = vectors + 2 * columns;
      rows_[r].residual = vectors + 3 * columns;
      rows_[r].products = products_.data() + size_t{1} * r * stride * columns;
      rows_[r].system = systems_.data() + size_t{1} * r * stride * (stride + 1);
    }
  }

  RefineTask Load(const SkimLayer& layer, int64_t first, const float* matrix, const uint8_t* bits, int32_t stride,
                  float* levels, uint8_t* codes) {
    const auto size = static_cast<int32_t>(std::min<int64_t>(kRowsTogether, layer.rows - first));
    for (int32_t r = 0; r < size; r++) {
      LoadRow(Row(layer, first + r), rows_[r]);
      rows_[r].count = 1 << bits[first + r];
      rows_[r].levels = levels + (first + r) * stride;
      rows_[r].codes = codes + (first + r) * columns_;
    }
    return {rows_, size, matrix, columns_};
  }

 private:
  void LoadRow(const Row& row, RefineRow& out) const {
    float* unit = out.target + columns_;
    double sum = 0;
    for (int32_t k = 0; k < columns_; k++) sum += row.Weight(k);
    // A weight counts at least a little: codes of columns that never were active stay near them.
    const double least = sum > 0 ? kLeastWeight * sum / columns_ : 1;
    for (int32_t k = 0; k < columns_; k++) {
      const auto root = static_cast<float>(std::sqrt(std::max(row.Weight(k), least)));
      out.target[k] = root * row.values[k];
      unit[k] = root * row.column_scale[k];
    }
    out.unit = unit;
  }

  static constexpr double kLeastWeight = 1e-6;  // of the row's mean weight

  int32_t columns_;
  std::vector<float> vectors_, products_;
  std::vector<double> systems_;
  RefineRow rows_[kRowsTogether];
};

Feedback FastestFeedback() {
#ifdef SKIM_SOLVER_AVX2
  if (__builtin_cpu_supports("avx2")) return FeedbackRowsAvx2;
#endif
  return FeedbackRows;
}

Refine FastestRefine() {
#ifdef SKIM_SOLVER_AVX2
  if (__builtin_cpu_supports("avx2")) return RefineRowsAvx2;
#endif
  return RefineRows;
}

// Sums over rows are taken in this many blocks, always in the same order, whatever the number of threads.
constexpr int64_t kBlocks = 64;

}  // namespace
}  // namespace skim

using skim::ParallelFor;
using skim::Row;
using skim::RowKmeans;

bool skim_error_curves(const SkimLayer* layer, int32_t max_bits, int32_t threads, double* errors) {
  const auto make = [&] { return RowKmeans(layer->columns, 0); };
  return ParallelFor(layer->rows, threads, make, [&](RowKmeans& kmeans, int64_t r) {
    const Row row(*layer, r);
    kmeans.Load(row.values, row.weights, row.column_scale);
    kmeans.ErrorCurve(max_bits, errors + r * max_bits);
  });
}

bool skim_kmeans(const SkimLayer* layer, const uint8_t* bits, int32_t stride, int32_t points, int32_t threads,
                 float* centroids, float* mass, uint8_t* codes) {
  const auto make = [&] { return RowKmeans(layer->columns, points); };
  return ParallelFor(layer->rows, threads, make, [&](RowKmeans& kmeans, int64_t r) {
    const Row row(*layer, r);
    kmeans.Load(row.values, row.weights, row.column_scale);
    kmeans.Cluster(bits[r], centroids + r * stride, mass + r * stride, codes + r * layer->columns);
  });
}

bool skim_assign(const SkimLayer* layer, const uint8_t* bits, const float* levels, int32_t stride, int32_t threads,
                 uint8_t* codes, double* errors) {
  struct State {
    std::vector<float> scaled;
    std::vector<int32_t> counts;
  };
  const auto make = [&] { return State{std::vector<float>(layer->columns), std::vector<int32_t>(layer->columns)}; };
  return ParallelFor(layer->rows, threads, make, [&](State& state, int64_t r) {
    errors[r] = skim::Assign(Row(*layer, r), levels + r * stride, 1 << bits[r], state.scaled.data(),
                             state.counts.data(), codes + r * layer->columns);
  });
}

bool skim_assign_affine(const SkimLayer* layer, const uint8_t* bits, const float* scale, const float* offset,
                        int32_t threads, uint8_t* codes, double* errors, double* best_scale, double* best_offset) {
  const auto make = [] { return 0; };
  return ParallelFor(layer->rows, threads, make, [&](int, int64_t r) {
    const skim::AffineFit fit =
        skim::AssignAffine(Row(*layer, r), bits[r], scale[r], offset[r], codes + r * layer->columns);
    errors[r] = fit.error;
    best_scale[r] = fit.scale;
    best_offset[r] = fit.offset;
  });
}

bool skim_refit(const SkimLayer* layer, const uint8_t* bits, const uint8_t* codes, int32_t stride, int32_t threads,
                float* centroids, double* numerator, double* denominator, double* errors) {
  const int64_t columns = layer->columns;
  std::vector<double> partial;
  try {
    partial.resize(2 * skim::kBlocks * columns);
  } catch (const std::bad_alloc&) {
    return false;
  }
  const auto make = [] { return skim::Sums(); };
  const bool done = ParallelFor(skim::kBlocks, threads, make, [&](skim::Sums& sums, int64_t block) {
    double* above = partial.data() + 2 * block * columns;
    const int64_t end = (block + 1) * layer->rows / skim::kBlocks;
    for (int64_t r = block * layer->rows / skim::kBlocks; r < end; r++) {
      errors[r] = skim::Refit(Row(*layer, r), codes + r * columns, 1 << bits[r], &sums, centroids + r * stride, above,
                              above + columns);
    }
  });
  std::fill_n(numerator, columns, 0.0);
  std::fill_n(denominator, columns, 0.0);
  for (int64_t block = 0; block < skim::kBlocks; block++) {
    const double* above = partial.data() + 2 * block * columns;
    for (int64_t k = 0; k < columns; k++) {
      numerator[k] += above[k];
      denominator[k] += above[columns + k];
    }
  }
  return done;
}

bool skim_feedback(const SkimLayer* layer, const float* factor, const uint8_t* bits, float* levels, int32_t stride,
                   int32_t threads, uint8_t* codes) {
  const skim::Feedback feedback = skim::FastestFeedback();
  const auto make = [&] { return skim::RowsTogether(layer->columns, 0); };
  const int64_t tasks = (layer->rows + skim::kRowsTogether - 1) / skim::kRowsTogether;
  return ParallelFor(tasks, threads, make, [&](skim::RowsTogether& together, int64_t index) {
    feedback(together.Load(*layer, index * skim::kRowsTogether, factor, bits, stride, levels, codes));
  });
}

bool skim_refine(const SkimLayer* layer, const float* correlation, const uint8_t* bits, int32_t stride, int32_t rounds,
                 int32_t sweeps, bool fit, int32_t threads, float* levels, uint8_t* codes, double* errors) {
  const skim::Refine refine = skim::FastestRefine();
  const auto make = [&] { return skim::RowsTogether(layer->columns, stride); };
  const int64_t tasks = (layer->rows + skim::kRowsTogether - 1) / skim::kRowsTogether;
  return ParallelFor(tasks, threads, make, [&](skim::RowsTogether& together, int64_t index) {
    const int64_t first = index * skim::kRowsTogether;
    const skim::RefineTask task = together.Load(*layer, first, correlation, bits, stride, levels, codes);
    refine(task, rounds, sweeps, fit);
    for (int32_t r = 0; r < task.size; r++) errors[first + r] = task.rows[r].error;
  });
}
