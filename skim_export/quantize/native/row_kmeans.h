// Exact weighted k-means of one row of weights.
#pragma once

#include <cstdint>
#include <vector>

#include "split_search.h"

namespace skim {

// A weight counts at least this part of the row's mean weight: prefix sums stay strictly increasing in double
// precision, and columns that never were active still find a centroid.
constexpr double kClusterFloor = 1.0 / (1 << 30);

// Minimises sum_k weight[k] (value[k] - centroid[code[k]])^2 by dynamic programming over the sorted values. The optimum
// with m clusters is found on the way to m + 1, so one pass gives the errors of all codebook sizes.
// With fewer `points` than columns, clusters begin at every n-th sorted value only: the program runs over n times fewer
// points, and what it minimises is still the error of all values.
// Working memory is kept from row to row: one object per thread.
class RowKmeans {
 public:
  // At least `points` places where a cluster may begin, if there are as many columns; 0 for all.
  RowKmeans(int32_t columns, int32_t points);

  // Takes a row: `weight` nullptr means all 1; so does a row whose weights are all 0.
  void Load(const float* row, const float* weight, const float* column_scale);

  // errors[b - 1]: the least weighted error with 2^b centroids, b in 1..max_bits; all 0 if the weights are.
  void ErrorCurve(int32_t max_bits, double* errors);

  // Centroids [2^bits] ascending, the sum of the weights of each cluster [2^bits], codes [columns].
  void Cluster(int32_t bits, float* centroids, float* mass, uint8_t* codes);

 private:
  void Sort();
  void FirstStep();
  void NextStep(bool only_last, const int32_t* split_before, int32_t* next_split);

  int32_t columns_;
  int32_t run_;  // sorted values that stay together
  int32_t n_;    // number of runs
  bool all_zero_;
  double mean_, total_;                     // mean of the row and sum of squares about it
  std::vector<uint64_t> keys_, next_keys_;  // sortable value in the upper half, column in the lower
  std::vector<double> mass_, moment_;       // prefix sums over runs, values taken about the mean
  std::vector<double> gain_, next_gain_;
  std::vector<int32_t> splits_;  // [clusters - 1][prefix], as far as needed
};

}  // namespace skim
