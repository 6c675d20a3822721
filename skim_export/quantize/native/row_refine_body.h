// Included by one source file per instruction set, which defines the names SKIM_FEEDBACK_ROWS and SKIM_REFINE_ROWS.
// Nothing of the standard library is used here, see split_search_body.h.
#include <cstdint>

#include "row_refine.h"

namespace skim {
namespace {

constexpr int32_t kLanes = 8;
constexpr double kRidge = 1e-6;  // of the mean diagonal: levels that no code uses stay where they are

// y += a x
inline void Add(float a, const float* __restrict x, int32_t n, float* __restrict y) {
  for (int32_t i = 0; i < n; i++) y[i] += a * x[i];
}

// The order of summation is fixed, so that all instruction sets give the same bits.
inline double Dot(const float* x, const float* y, int32_t n) {
  double sums[kLanes] = {};
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int32_t lane = 0; lane < kLanes; lane++) sums[lane] += static_cast<double>(x[i + lane]) * y[i + lane];
  }
  for (; i < n; i++) sums[0] += static_cast<double>(x[i]) * y[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Index of the level nearest to `value`: the number of midpoints below it.
inline int32_t Nearest(const float* levels, int32_t count, float value) {
  int32_t code = 0;
  for (int32_t step = count / 2; step > 0; step /= 2) {  // count is a power of two
    const int32_t next = code + step;
    code = value > 0.5f * (levels[next - 1] + levels[next]) ? next : code;
  }
  return code;
}

// Solves the symmetric positive definite system [n][n + 1] in place; the solution replaces the last column. False, and
// the last column unusable, where it is singular.
bool Solve(double* a, int32_t n) {
  const int32_t stride = n + 1;
  for (int32_t i = 0; i < n; i++) {
    for (int32_t j = 0; j <= i; j++) {
      double sum = a[i * stride + j];
      for (int32_t t = 0; t < j; t++) sum -= a[i * stride + t] * a[j * stride + t];
      if (i > j) {
        a[i * stride + j] = sum / a[j * stride + j];
      } else if (sum > 0) {
        a[i * stride + i] = __builtin_sqrt(sum);
      } else {
        return false;
      }
    }
  }
  for (int32_t i = 0; i < n; i++) {
    double sum = a[i * stride + n];
    for (int32_t t = 0; t < i; t++) sum -= a[i * stride + t] * a[t * stride + n];
    a[i * stride + n] = sum / a[i * stride + i];
  }
  for (int32_t i = n - 1; i >= 0; i--) {
    double sum = a[i * stride + n];
    for (int32_t t = i + 1; t < n; t++) sum -= a[t * stride + i] * a[t * stride + n];
    a[i * stride + n] = sum / a[i * stride + i];
  }
  return true;
}

// Brings the levels into ascending order and renames the codes; codes of equal levels keep their order.
void Sort(RefineRow& row, int32_t columns) {
  uint8_t order[256], renamed[256];
  float sorted[256];
  for (int32_t i = 0; i < row.count; i++) {
    int32_t at = i;
    for (; at > 0 && row.levels[order[at - 1]] > row.levels[i]; at--) order[at] = order[at - 1];
    order[at] = static_cast<uint8_t>(i);
  }
  for (int32_t i = 0; i < row.count; i++) {
    sorted[i] = row.levels[order[i]];
    renamed[order[i]] = static_cast<uint8_t>(i);
  }
  for (int32_t i = 0; i < row.count; i++) row.levels[i] = sorted[i];
  for (int32_t k = 0; k < columns; k++) row.codes[k] = renamed[row.codes[k]];
}

void Multiply(const RefineTask& task) {
  for (int32_t r = 0; r < task.size; r++) {
    for (int32_t k = 0; k < task.columns; k++) task.rows[r].pull[k] = 0;
  }
  for (int32_t k = 0; k < task.columns; k++) {
    const float* h = task.matrix + static_cast<int64_t>(k) * task.columns;
    for (int32_t r = 0; r < task.size; r++) Add(task.rows[r].target[k], h, task.columns, task.rows[r].pull);
  }
}

void Project(const RefineTask& task) {
  const int64_t n = task.columns;
  for (int32_t r = 0; r < task.size; r++) {
    for (int64_t i = 0; i < task.rows[r].count * n; i++) task.rows[r].products[i] = 0;
  }
  for (int64_t k = 0; k < n; k++) {
    for (int32_t r = 0; r < task.size; r++) {
      RefineRow& row = task.rows[r];
      Add(row.unit[k], task.matrix + k * n, task.columns, row.products + row.codes[k] * n);
    }
  }
}

void FitLevels(RefineRow& row, int32_t columns) {
  const int32_t count = row.count, stride = count + 1;
  double* a = row.system;
  for (int32_t i = 0; i < count * stride; i++) a[i] = 0;
  double trace = 0;
  for (int32_t i = 0; i < count; i++) {
    const float* product = row.products + static_cast<int64_t>(i) * columns;
    for (int32_t k = 0; k < columns; k++) a[i * stride + row.codes[k]] += static_cast<double>(row.unit[k]) * product[k];
    a[i * stride + count] = Dot(product, row.target, columns);
    trace += a[i * stride + i];
  }
  const double ridge = kRidge * trace / count;
  for (int32_t i = 0; i < count; i++) {
    a[i * stride + i] += ridge;
    a[i * stride + count] += ridge * row.levels[i];
  }
  if (!Solve(a, count)) return;
  for (int32_t i = 0; i < count; i++) row.levels[i] = static_cast<float>(a[i * stride + count]);
}

void SetResidual(RefineRow& row, int32_t columns) {
  for (int32_t k = 0; k < columns; k++) row.residual[k] = row.pull[k];
  for (int32_t i = 0; i < row.count; i++) {
    Add(-row.levels[i], row.products + static_cast<int64_t>(i) * columns, columns, row.residual);
  }
}

// One round of coordinate descent; returns the number of codes that changed.
int32_t Sweep(const RefineTask& task) {
  int32_t changes = 0;
  for (int32_t k = 0; k < task.columns; k++) {
    const float* h = task.matrix + static_cast<int64_t>(k) * task.columns;
    for (int32_t r = 0; r < task.size; r++) {
      RefineRow& row = task.rows[r];
      const float level = row.levels[row.codes[k]];
      const int32_t code = Nearest(row.levels, row.count, level + row.residual[k] / (h[k] * row.unit[k]));
      if (code == row.codes[k]) continue;
      Add((level - row.levels[code]) * row.unit[k], h, task.columns, row.residual);
      row.codes[k] = static_cast<uint8_t>(code);
      changes++;
    }
  }
  return changes;
}

double Error(const RefineRow& row, int32_t columns) {
  double error = 0;
  for (int32_t k = 0; k < columns; k++) {
    error += static_cast<double>(row.residual[k]) * (row.target[k] - row.unit[k] * row.levels[row.codes[k]]);
  }
  return error > 0 ? error : 0;
}

}  // namespace

void SKIM_FEEDBACK_ROWS(const RefineTask& task) {
  for (int32_t k = 0; k < task.columns; k++) {
    const float* factor = task.matrix + static_cast<int64_t>(k) * task.columns;
    for (int32_t r = 0; r < task.size; r++) {
      RefineRow& row = task.rows[r];
      const int32_t code = Nearest(row.levels, row.count, row.target[k] / row.unit[k]);
      const float error = (row.target[k] - row.levels[code] * row.unit[k]) / factor[k];
      Add(-error, factor + k + 1, task.columns - k - 1, row.target + k + 1);
      row.codes[k] = static_cast<uint8_t>(code);
    }
  }
}

void SKIM_REFINE_ROWS(const RefineTask& task, int32_t rounds, int32_t sweeps, bool fit) {
  Multiply(task);
  for (int32_t round = 0; round < rounds; round++) {
    Project(task);
    for (int32_t r = 0; r < task.size; r++) {
      if (fit) FitLevels(task.rows[r], task.columns);
      SetResidual(task.rows[r], task.columns);
      if (fit) Sort(task.rows[r], task.columns);  // now that nothing needs the products, which follow the old codes
    }
    for (int32_t sweep = 0; sweep < sweeps; sweep++) {
      if (Sweep(task) == 0) break;
    }
  }
  for (int32_t r = 0; r < task.size; r++) task.rows[r].error = Error(task.rows[r], task.columns);
}

}  // namespace skim
