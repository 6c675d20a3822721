// The inner step of exact k-means in one dimension: one more cluster.
#pragma once

#include <cstdint>

namespace skim {

// Prefix sums end in this many readable elements, so that vectors may be loaded past the end.
constexpr int kPadding = 4;

// A row of n sorted points and one step of its dynamic program. All arrays are indexed by prefix length 0..n.
struct SplitStep {
  const double* mass;           // sum of the weights of the prefix, strictly increasing
  const double* moment;         // sum of weight * value of the prefix
  const double* gain;           // best explained sum of squares of the prefix with m clusters
  const int32_t* split_before;  // where the last of those m clusters starts
  double* next_gain;            // out: the same with m + 1 clusters
  int32_t* next_split;          // out
  int32_t n;
  bool only_last;  // only prefix n is wanted
};

void SearchSplits(const SplitStep& step);
#ifdef SKIM_SOLVER_AVX2
void SearchSplitsAvx2(const SplitStep& step);
#endif

}  // namespace skim
