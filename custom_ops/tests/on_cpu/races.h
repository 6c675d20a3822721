// Finds threads of a block that access the same place in shared memory, one of them to write, with no barrier between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace skim::on_cpu {

class Races {
 public:
  // Blocks have at most so much shared memory from now on.
  void Reserve(size_t shared_bytes);
  // A block begins, or all its threads have passed a barrier; or those of a warp have.
  void PassBlock() { ++block_epoch_; }
  void PassWarp(unsigned warp) { ++warp_epochs_[warp]; }

  // Aborts if there is a race with an earlier access.
  void Read(unsigned thread, size_t offset, size_t bytes);
  void Write(unsigned thread, size_t offset, size_t bytes);

 private:
  static constexpr unsigned kMaxWarps = 32;
  static constexpr size_t kPlaceBytes = 2;  // of a half: no kernel stores less to shared memory

  // By a thread, or by several of a warp between two of its barriers.
  struct Access {
    uint64_t block_epoch = 0;  // of none
    uint64_t warp_epoch = 0;
    unsigned thread = 0;
    bool several = false;
  };

  struct Place {
    Access write;
    // The last reads, of two different warps: a write by any warp has a race with one of them if it has a race with any
    // read at all.
    Access reads[2];
  };

  Access By(unsigned thread) const;
  static bool SameWarpAndEpoch(const Access& access, const Access& other);
  static void Check(const Access& before, const Access& now, size_t place);

  uint64_t block_epoch_ = 0, warp_epochs_[kMaxWarps] = {};
  std::vector<Place> places_;
};

}  // namespace skim::on_cpu
