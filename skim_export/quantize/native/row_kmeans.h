// Exact weighted k-means of one row of weights.
#pragma once

#include <cstdint>
#include <vector>

#include "split_search.h"

namespace skim {

// Minimises sum_k weight[k] (value[k] - centroid[code[k]])^2 by dynamic programming over the sorted values. The optimum
// with m clusters is found on the way to m + 1, so one pass gives the errors of all codebook sizes.
// Working memory is kept from row to row: one object per thread.
class RowKmeans {
 public:
  explicit RowKmeans(int32_t columns);

  // Takes a row: `weight` nullptr means all 1; so does a row whose weights are all 0.
  void Load(const float* row, const float* weight, const float* column_scale);

  // errors[b - 1]: the least weighted error with 2^b centroids, b in 1..max_bits; all 0 if the weights are.
  void ErrorCurve(int32_t max_bits, double* errors);

  // Centroids [2^bits] ascending, the sum of the weights of each cluster [2^bits], codes [columns].
  void Cluster(int32_t bits, float* centroids, float* mass, uint8_t* codes);

 private:
  void FirstStep();
  void NextStep(bool only_last, const int32_t* split_before, int32_t* next_split);

  int32_t n_;
  bool all_zero_;
  double mean_, total_;                // mean of the row and sum of squares about it
  std::vector<uint64_t> keys_;         // sortable value in the upper half, column in the lower
  std::vector<double> mass_, moment_;  // prefix sums, values taken about the mean
  std::vector<double> gain_, next_gain_;
  std::vector<int32_t> splits_;  // [clusters - 1][prefix], as far as needed
};

}  // namespace skim
