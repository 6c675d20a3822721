// The numbered barriers of a block (bar.sync, bar.arrive).
#pragma once

#include <vector>

#include "grid.h"
#include "races.h"

namespace skim::on_cpu {

class Barriers {
 public:
  static constexpr int kCount = 16;  // 0 is __syncthreads

  // A warp comes to a barrier for `threads` threads. Returns the warps that waited there, if it is the last one.
  std::vector<unsigned> Arrive(unsigned warp, int number, int threads, bool waits, Races& races);
  // The block is at its end: aborts if threads have come to a barrier that nobody passes.
  void End();

 private:
  struct Numbered {
    int threads = 0;
    std::vector<unsigned> warps, waiting;  // that have come
    Races::Clock known{};
  };

  Numbered barriers_[kCount];
};

}  // namespace skim::on_cpu
