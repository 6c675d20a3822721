#include "solver.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "row.h"
#include "row_group.h"
#include "row_kmeans.h"
#include "row_refine.h"

namespace skim {
namespace {

constexpr int32_t kMostBits = 8;  // a code is a byte

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
  double weight[1 << kMostBits], moment[1 << kMostBits];
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

// Calls work(group, index of its first row) for groups of all rows.
template <typename Work>
bool ForGroups(const SkimRows& rows, RefineStep step, const float* matrix, const uint8_t* bits, const uint8_t* memory,
               float* levels, int32_t stride, int32_t threads, uint8_t* codes, const Work& work) {
  const int64_t groups = GroupCount(rows, bits, memory != nullptr, step, threads);
  const auto make = [] { return RowGroup(); };
  return ParallelFor(groups, threads, make, [&](RowGroup& group, int64_t index) {
    const int64_t first = index * rows.count / groups, end = (index + 1) * rows.count / groups;
    work(group.Load(rows, first, end, matrix, bits, memory, step, levels, stride, codes), first);
  });
}

// Sums over rows are taken in this many blocks, always in the same order, whatever the number of threads.
constexpr int64_t kBlocks = 64;

}  // namespace
}  // namespace skim

using skim::ParallelFor;
using skim::Row;
using skim::RowKmeans;

int32_t skim_most_bits() { return skim::kMostBits; }
int32_t skim_rows_together() { return skim::kMostRows; }
double skim_cluster_floor() { return skim::kClusterFloor; }
double skim_refine_floor() { return skim::kRefineFloor; }
double skim_refine_ridge() { return skim::kRidge; }

int64_t skim_refine_bytes(int32_t columns, int32_t bits, int32_t threads) {
  return threads * skim::MostBytes(columns, bits, skim::RefineStep::kRefine);
}

bool skim_error_curves(const SkimRows* rows, int32_t max_bits, int32_t threads, double* errors) {
  const auto make = [&] { return RowKmeans(rows->columns, 0); };
  return ParallelFor(rows->count, threads, make, [&](RowKmeans& kmeans, int64_t r) {
    const Row row(*rows, r);
    kmeans.Load(row.values, row.weights, row.column_scale);
    kmeans.ErrorCurve(max_bits, errors + r * max_bits);
  });
}

bool skim_kmeans(const SkimRows* rows, const uint8_t* bits, int32_t stride, int32_t points, int32_t threads,
                 float* centroids, float* mass, uint8_t* codes) {
  const auto make = [&] { return RowKmeans(rows->columns, points); };
  return ParallelFor(rows->count, threads, make, [&](RowKmeans& kmeans, int64_t r) {
    const Row row(*rows, r);
    kmeans.Load(row.values, row.weights, row.column_scale);
    kmeans.Cluster(bits[r], centroids + r * stride, mass + r * stride, codes + r * rows->columns);
  });
}

bool skim_assign(const SkimRows* rows, const uint8_t* bits, const float* levels, int32_t stride, int32_t threads,
                 uint8_t* codes, double* errors) {
  struct State {
    std::vector<float> scaled;
    std::vector<int32_t> counts;
  };
  const auto make = [&] { return State{std::vector<float>(rows->columns), std::vector<int32_t>(rows->columns)}; };
  return ParallelFor(rows->count, threads, make, [&](State& state, int64_t r) {
    errors[r] = skim::Assign(Row(*rows, r), levels + r * stride, 1 << bits[r], state.scaled.data(), state.counts.data(),
                             codes + r * rows->columns);
  });
}

bool skim_assign_affine(const SkimRows* rows, const uint8_t* bits, const float* scale, const float* offset,
                        int32_t threads, uint8_t* codes, double* errors, double* best_scale, double* best_offset) {
  const auto make = [] { return 0; };
  return ParallelFor(rows->count, threads, make, [&](int, int64_t r) {
    const skim::AffineFit fit =
        skim::AssignAffine(Row(*rows, r), bits[r], scale[r], offset[r], codes + r * rows->columns);
    errors[r] = fit.error;
    best_scale[r] = fit.scale;
    best_offset[r] = fit.offset;
  });
}

bool skim_refit(const SkimRows* rows, const uint8_t* bits, const uint8_t* codes, int32_t stride, int32_t threads,
                float* centroids, double* numerator, double* denominator, double* errors) {
  const int64_t columns = rows->columns;
  std::vector<double> partial;
  try {
    partial.resize(2 * skim::kBlocks * columns);
  } catch (const std::bad_alloc&) {
    return false;
  }
  const auto make = [] { return skim::Sums(); };
  const bool done = ParallelFor(skim::kBlocks, threads, make, [&](skim::Sums& sums, int64_t block) {
    double* above = partial.data() + 2 * block * columns;
    const int64_t end = (block + 1) * rows->count / skim::kBlocks;
    for (int64_t r = block * rows->count / skim::kBlocks; r < end; r++) {
      errors[r] = skim::Refit(Row(*rows, r), codes + r * columns, 1 << bits[r], &sums, centroids + r * stride, above,
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

bool skim_feedback(const SkimRows* rows, const float* factor, const uint8_t* bits, const uint8_t* memory, float* levels,
                   int32_t stride, int32_t threads, uint8_t* codes) {
  const skim::Feedback feedback = skim::FastestFeedback();
  const auto done = [&](const skim::RefineGroup& group, int64_t) { feedback(group); };
  return skim::ForGroups(*rows, skim::RefineStep::kFeedback, factor, bits, memory, levels, stride, threads, codes,
                         done);
}

bool skim_refine(const SkimRows* rows, const float* correlation, const uint8_t* bits, const uint8_t* memory,
                 int32_t stride, int32_t rounds, int32_t sweeps, bool fit, int32_t threads, float* levels,
                 uint8_t* codes, double* errors) {
  const skim::Refine refine = skim::FastestRefine();
  const auto done = [&](const skim::RefineGroup& group, int64_t first) {
    refine(group, rounds, sweeps, fit);
    for (int32_t r = 0; r < group.size; r++) errors[first + r] = group.rows[r].error;
  };
  return skim::ForGroups(*rows, skim::RefineStep::kRefine, correlation, bits, memory, levels, stride, threads, codes,
                         done);
}
