#include "row_kmeans.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace skim {
namespace {

// Unsigned integer with the order of the floats.
uint32_t Sortable(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

float FromSortable(uint32_t bits) {
  bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The values are sorted by three digits, the least significant first.
constexpr int32_t kDigits = 3, kDigitBits = 11, kDigitValues = 1 << kDigitBits;

int32_t Digit(uint64_t key, int32_t digit) {
  return static_cast<int32_t>(key >> (32 + digit * kDigitBits)) & (kDigitValues - 1);
}

using Search = void (*)(const SplitStep&);

Search FastestSearch() {
#ifdef SKIM_SOLVER_AVX2
  if (__builtin_cpu_supports("avx2")) return SearchSplitsAvx2;
#endif
  return SearchSplits;
}

const Search kSearch = FastestSearch();

}  // namespace

RowKmeans::RowKmeans(int32_t columns, int32_t points)
    : columns_(columns),
      run_(points > 0 ? std::max(columns / points, 1) : 1),
      n_((columns + run_ - 1) / run_),
      keys_(columns),
      next_keys_(columns),
      mass_(n_ + 1 + kPadding),
      moment_(n_ + 1 + kPadding),
      gain_(n_ + 1 + kPadding),
      next_gain_(n_ + 1 + kPadding) {}

void RowKmeans::Load(const float* row, const float* weight, const float* column_scale) {
  double sum = 0, weighted = 0;
  for (int32_t k = 0; k < columns_; k++) {
    const float value = row[k] / column_scale[k];
    const double a = column_scale[k];
    const double s = weight ? weight[k] * a * a : 1;
    sum += s;
    weighted += s * value;
    keys_[k] = static_cast<uint64_t>(Sortable(value)) << 32 | static_cast<uint32_t>(k);
  }
  all_zero_ = !(sum > 0);
  const bool uniform = !weight || all_zero_;
  mean_ = all_zero_ ? 0 : weighted / sum;
  const double least = kClusterFloor * sum / columns_;
  Sort();
  double mass = 0, moment = 0;
  mass_[0] = moment_[0] = total_ = 0;
  for (int32_t i = 0, end = 1; end <= n_; end++) {
    for (const int32_t stop = std::min(i + run_, columns_); i < stop; i++) {
      const auto k = static_cast<uint32_t>(keys_[i]);
      const double a = column_scale[k];
      const double s = uniform ? 1 : std::max(weight[k] * a * a, least);
      const double value = FromSortable(static_cast<uint32_t>(keys_[i] >> 32)) - mean_;
      mass += s;
      moment += s * value;
      total_ += s * value * value;
    }
    mass_[end] = mass;
    moment_[end] = moment;
  }
}

void RowKmeans::Sort() {
  int32_t starts[kDigits][kDigitValues] = {};
  for (const uint64_t key : keys_) {
    for (int32_t d = 0; d < kDigits; d++) starts[d][Digit(key, d)]++;
  }
  for (int32_t d = 0; d < kDigits; d++) {
    if (starts[d][Digit(keys_[0], d)] == columns_) continue;  // the lower digits of 16-bit floats are all 0
    int32_t start = 0;
    for (int32_t& count : starts[d]) start += std::exchange(count, start);
    for (const uint64_t key : keys_) next_keys_[starts[d][Digit(key, d)]++] = key;
    keys_.swap(next_keys_);
  }
}

void RowKmeans::FirstStep() {
  for (int32_t i = 1; i <= n_; i++) gain_[i] = moment_[i] * moment_[i] / mass_[i];
  gain_[0] = 0;
  std::fill_n(splits_.begin(), n_ + 1, 0);
}

void RowKmeans::NextStep(bool only_last, const int32_t* split_before, int32_t* next_split) {
  kSearch({mass_.data(), moment_.data(), gain_.data(), split_before, next_gain_.data(), next_split, n_, only_last});
  gain_.swap(next_gain_);
}

void RowKmeans::ErrorCurve(int32_t max_bits, double* errors) {
  const int32_t prefixes = n_ + 1, most = 1 << max_bits;
  splits_.resize(std::max<size_t>(splits_.size(), size_t{2} * prefixes));
  FirstStep();
  int32_t bits = 1;
  for (int32_t clusters = 2; clusters <= most; clusters++) {
    NextStep(clusters == most, &splits_[clusters % 2 * prefixes], &splits_[(clusters + 1) % 2 * prefixes]);
    if (clusters == 1 << bits) errors[bits++ - 1] = all_zero_ ? 0 : std::max(total_ - gain_[n_], 0.0);
  }
}

void RowKmeans::Cluster(int32_t bits, float* centroids, float* mass, uint8_t* codes) {
  const size_t prefixes = n_ + 1;
  const int32_t most = 1 << bits;
  splits_.resize(std::max(splits_.size(), most * prefixes));
  FirstStep();
  for (int32_t clusters = 2; clusters <= most; clusters++) {
    NextStep(clusters == most, &splits_[(clusters - 2) * prefixes], &splits_[(clusters - 1) * prefixes]);
  }
  int32_t end = n_;
  for (int32_t c = most - 1; c >= 0; c--) {
    const int32_t start = splits_[c * prefixes + end];
    if (start == end) {  // fewer points than centroids: repeat the lowest
      centroids[c] = centroids[c + 1];
      mass[c] = 0;
      continue;
    }
    const double weight = mass_[end] - mass_[start];
    centroids[c] = static_cast<float>((moment_[end] - moment_[start]) / weight + mean_);
    mass[c] = static_cast<float>(weight);
    const int32_t stop = std::min(end * run_, columns_);
    for (int32_t i = start * run_; i < stop; i++) codes[static_cast<uint32_t>(keys_[i])] = static_cast<uint8_t>(c);
    end = start;
  }
}

}  // namespace skim
