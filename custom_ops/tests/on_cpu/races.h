// Finds threads of a block that access the same place in shared memory, one of them to write, with no barrier between.
//
// Each warp counts its epochs: one ends where others may learn that it is over. What a warp knows of the others' epochs
// is a vector clock; an access was before another one if its epoch is known to be over there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace skim::on_cpu {

class Races {
 public:
  static constexpr unsigned kMaxWarps = 32;
  using Clock = std::array<uint64_t, kMaxWarps>;  // the last epoch of each warp that is known to be over

  // Blocks have at most so much shared memory, and so many warps, from now on.
  void Reserve(size_t shared_bytes, unsigned warps);
  // A block begins.
  void Begin();
  // All its threads have passed a barrier, or those of a warp have.
  void PassBlock();
  void PassWarp(unsigned warp) { ++Epoch(warp); }
  // A warp comes to a barrier of some warps, and adds what it knows; or passes it, and learns what they know.
  void Arrive(unsigned warp, Clock& known);
  void Pass(unsigned warp, const Clock& known);

  // These abort if there is a race with an earlier access.
  void Read(unsigned thread, size_t offset, size_t bytes);
  void Write(unsigned thread, size_t offset, size_t bytes);

  // Multiplications of warpgroups do not see what threads have written, unless these fence it before they meet.
  void Fence(unsigned thread) { fences_[thread].push_back(Epoch(thread / kWarpThreads)); }
  void ReadAsync(unsigned thread, size_t offset, size_t bytes);

 private:
  static constexpr unsigned kWarpThreads = 32;
  static constexpr size_t kPlaceBytes = 2;  // of a half: no kernel stores less to shared memory

  // By a thread, or by several of a warp in the same epoch.
  struct Access {
    uint64_t epoch : 48;  // 0: there was none
    uint64_t lane : 5;
    uint64_t several : 1;
  };

  struct LastWrite {
    Access access{};
    unsigned warp = 0;
    size_t fences = 0;  // of the thread, before it
  };

  uint64_t& Epoch(unsigned warp) { return clocks_[warp][warp]; }
  Access By(unsigned thread) { return {Epoch(thread / kWarpThreads), thread % kWarpThreads, 0}; }
  void Check(const Access& before, unsigned warp, unsigned thread, size_t place);

  unsigned warps_ = 0;
  std::array<Clock, kMaxWarps> clocks_{};                     // of each warp; its own entry is the running epoch
  std::array<std::vector<uint64_t>, kMaxWarps * 32> fences_;  // of each thread of the block: their epochs
  std::vector<LastWrite> writes_;                             // of each place
  std::vector<Access> reads_;                                 // of each place, by each warp
};

}  // namespace skim::on_cpu
