#include "barriers.h"

#include <algorithm>

namespace skim::on_cpu {

std::vector<unsigned> Barriers::Arrive(unsigned warp, int number, int threads, bool waits, Races& races) {
  if (number < 1 || number >= kCount) Abort("block %u: barrier %d: there are 1..15", block_index.x, number);
  if (threads <= 0 || threads % kWarp != 0) Abort("barrier %d for %d threads: no whole warps", number, threads);
  Numbered& barrier = barriers_[number];
  if (barrier.warps.empty()) barrier.threads = threads;
  if (barrier.threads != threads) {
    Abort("block %u: barrier %d is for %d threads, but warp %u comes as one of %d", block_index.x, number,
          barrier.threads, warp, threads);
  }
  if (std::count(barrier.warps.begin(), barrier.warps.end(), warp) != 0) {
    Abort("block %u: warp %u comes to barrier %d again before the others", block_index.x, warp, number);
  }
  barrier.warps.push_back(warp);
  if (waits) barrier.waiting.push_back(warp);
  races.Arrive(warp, barrier.known);
  if (barrier.warps.size() * kWarp < static_cast<size_t>(threads)) return {};
  const Numbered full = std::move(barrier);
  barrier = {};
  for (unsigned waiting : full.waiting) races.Pass(waiting, full.known);
  return full.waiting;
}

void Barriers::End() {
  for (int number = 1; number < kCount; ++number) {
    const Numbered& barrier = barriers_[number];
    if (barrier.warps.empty()) continue;
    Abort("block %u ends, but only %zu of %d threads have come to barrier %d", block_index.x,
          barrier.warps.size() * kWarp, barrier.threads, number);
  }
}

}  // namespace skim::on_cpu
