// Included by one source file per instruction set, which defines SKIM_SEARCH_SPLITS as the name of the function.
// Nothing of the standard library is used here: its templates, compiled for one instruction set, could be linked into
// the other.
#include <cstdint>

#include "split_search.h"

namespace skim {
namespace {

typedef double Vec __attribute__((vector_size(32)));
typedef int64_t Index __attribute__((vector_size(32)));

inline void Load(const double* p, Vec* v) { __builtin_memcpy(v, p, sizeof *v); }

// The best start in lo..hi of the last cluster of prefix `end`; the smallest of equally good ones.
inline void SearchOne(const SplitStep& step, int32_t end, int32_t lo, int32_t hi) {
  const double mass_end = step.mass[end], moment_end = step.moment[end];
  const int64_t last = hi;
  Vec best = {-1, -1, -1, -1};  // gains are never negative
  Index where = {lo, lo, lo, lo};
  Index start = {lo, lo + 1, lo + 2, lo + 3};
  for (int32_t a = lo; a <= hi; a += 4, start += 4) {
    Vec mass, moment, gain;
    Load(step.mass + a, &mass);
    Load(step.moment + a, &moment);
    Load(step.gain + a, &gain);
    mass = mass_end - mass;
    moment = moment_end - moment;
    gain += moment * moment / mass;
    const Index better = (gain > best) & (start <= last);
    best = better ? gain : best;
    where = better ? start : where;
  }
  double gain = best[0];
  int64_t split = where[0];
  for (int lane = 1; lane < 4; lane++) {
    const bool better = best[lane] > gain || (best[lane] == gain && where[lane] < split);
    gain = better ? best[lane] : gain;
    split = better ? where[lane] : split;
  }
  step.next_gain[end] = gain;
  step.next_split[end] = static_cast<int32_t>(split);
}

}  // namespace

// Splits are monotone in the prefix and in the number of clusters. So the prefixes are taken in the order of a
// bisection: the split lies between those of the two neighbours already done, and not before the one with a cluster
// less. Prefixes of one stride do not depend on each other, which keeps the processor's pipelines full.
void SKIM_SEARCH_SPLITS(const SplitStep& step) {
  const int32_t n = step.n;
  step.next_gain[0] = 0;
  step.next_split[0] = 0;
  SearchOne(step, n, step.split_before[n], n - 1);
  if (step.only_last) return;
  int32_t stride = 1;
  while (stride < n) stride *= 2;
  for (; stride >= 1; stride /= 2) {
    for (int32_t end = stride; end < n; end += 2 * stride) {
      const int32_t right = end + stride < n ? end + stride : n;
      int32_t hi = step.next_split[right];
      int32_t lo = step.next_split[end - stride];
      if (hi > end - 1) hi = end - 1;
      if (lo < step.split_before[end]) lo = step.split_before[end];
      if (lo > hi) lo = hi;  // rounding can break the order of equally good splits
      SearchOne(step, end, lo, hi);
    }
  }
}

}  // namespace skim
