#include "row_group.h"

#include <algorithm>
#include <cmath>

namespace skim {
namespace {

constexpr int64_t kMostBytes = int64_t{128} << 20;  // of working memory for a thread, unless one row takes more

int32_t Panels(int32_t columns) { return (columns + kPanel - 1) / kPanel; }

// Working memory of a row with so many free levels.
int64_t RowBytes(int32_t columns, int32_t free, RefineStep step) {
  const int64_t vectors = step == RefineStep::kRefine ? 4 + free : 2;
  return Panels(columns) * (vectors * sizeof(Panel) + kPanel * (sizeof(Term) + sizeof(Run)) + sizeof(int32_t));
}

void LoadRow(const Row& row, int64_t stride, Panel* target, Panel* unit) {
  double sum = 0;
  for (int32_t k = 0; k < row.columns; k++) sum += row.Weight(k);
  // A weight counts at least a little: codes of columns that never were active stay near them.
  const double least = sum > 0 ? kRefineFloor * sum / row.columns : 1;
  for (int32_t k = 0; k < row.columns; k++) {
    const auto root = static_cast<float>(std::sqrt(std::max(row.Weight(k), least)));
    target[k / kPanel * stride].at[k % kPanel] = root * row.values[k];
    unit[k / kPanel * stride].at[k % kPanel] = root * row.column_scale[k];
  }
}

// Free levels of a row whose codes, or windows if there is a memory, have so many bits.
int32_t FreeLevels(int32_t bits, bool windows) { return (1 << bits) / (windows ? 2 : 1); }

}  // namespace

int64_t MostBytes(int32_t columns, int32_t bits, RefineStep step) {
  const int64_t row = RowBytes(columns, FreeLevels(bits, false), step);
  return std::max(row, std::min(kMostRows * row, kMostBytes));
}

int64_t GroupCount(const SkimRows& rows, const uint8_t* bits, bool windows, RefineStep step, int32_t threads) {
  int64_t bytes = 0;
  for (int64_t r = 0; r < rows.count; r++) bytes += RowBytes(rows.columns, FreeLevels(bits[r], windows), step);
  const auto turns = [&](int64_t all, int64_t most) { return (all + most * threads - 1) / (most * threads); };
  return std::min(rows.count, threads * std::max(turns(rows.count, kMostRows), turns(bytes, kMostBytes)));
}

RefineGroup RowGroup::Load(const SkimRows& rows, int64_t first, int64_t end, const float* matrix, const uint8_t* bits,
                           const uint8_t* memory, RefineStep step, float* levels, int32_t stride, uint8_t* codes) {
  const auto size = static_cast<int32_t>(end - first);
  const int32_t panels = Panels(rows.columns);
  const size_t row_panels = size_t{1} * panels * size;
  rows_.resize(size);
  target_.resize(row_panels);
  unit_.resize(row_panels);
  int32_t all_levels = 0, most_levels = 0;
  for (int32_t r = 0; r < size; r++) {
    LoadRow(Row(rows, first + r), size, &target_[r], &unit_[r]);
    const int32_t count = 1 << bits[first + r];
    float* of_row = levels + (first + r) * stride;
    const int32_t remembered = memory ? memory[first + r] : 0;
    const int32_t free = FreeLevels(bits[first + r], memory);
    rows_[r] = {count, remembered, free, all_levels, of_row, codes + (first + r) * rows.columns, 0, false, 0};
    all_levels += free;
    most_levels = std::max(most_levels, free);
  }
  middles_.resize(all_levels);
  terms_.resize(row_panels * kPanel);
  runs_.resize(row_panels * kPanel);
  counts_.resize(row_panels);
  if (step == RefineStep::kRefine) {
    pull_.resize(row_panels);
    residual_.resize(row_panels);
    products_.resize(size_t{1} * panels * all_levels);
    system_.resize(size_t{1} * most_levels * (most_levels + 1));
  }
  RefineGroup group;
  group.rows = rows_.data();
  group.size = size;
  group.levels = all_levels;
  group.matrix = matrix;
  group.windows = memory != nullptr;
  group.columns = rows.columns;
  group.panels = panels;
  group.target = target_.data();
  group.unit = unit_.data();
  group.middles = middles_.data();
  group.terms = terms_.data();
  group.runs = runs_.data();
  group.counts = counts_.data();
  group.pull = pull_.data();
  group.residual = residual_.data();
  group.products = products_.data();
  group.system = system_.data();
  return group;
}

}  // namespace skim
