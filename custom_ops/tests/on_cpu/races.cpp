#include "races.h"

#include <algorithm>

#include "grid.h"

namespace skim::on_cpu {

void Races::Reserve(size_t shared_bytes, unsigned warps) {
  const size_t places = (shared_bytes + kPlaceBytes - 1) / kPlaceBytes;
  if (writes_.size() >= places && warps_ == warps) return;
  warps_ = warps;
  writes_.assign(std::max(places, writes_.size()), {});
  reads_.assign(writes_.size() * warps, {});
}

void Races::Begin() {
  PassBlock();
  for (std::vector<uint64_t>& fences : fences_) fences.clear();
}

void Races::PassBlock() {
  Clock over{};
  for (unsigned warp = 0; warp < warps_; ++warp) over[warp] = Epoch(warp);
  for (unsigned warp = 0; warp < warps_; ++warp) {
    clocks_[warp] = over;
    ++Epoch(warp);
  }
}

void Races::Arrive(unsigned warp, Clock& known) {
  for (unsigned i = 0; i < warps_; ++i) known[i] = std::max(known[i], clocks_[warp][i]);
  ++Epoch(warp);
}

void Races::Pass(unsigned warp, const Clock& known) {
  for (unsigned i = 0; i < warps_; ++i) {
    if (i != warp) clocks_[warp][i] = std::max(known[i], clocks_[warp][i]);
  }
}

// `before`: by `warp`.
void Races::Check(const Access& before, unsigned warp, unsigned thread, size_t place) {
  const Access now = By(thread);
  const bool ordered = warp == thread / kWarpThreads
                           ? before.epoch != now.epoch || (before.lane == now.lane && !before.several)
                           : before.epoch <= clocks_[thread / kWarpThreads][warp];
  if (before.epoch == 0 || ordered) return;
  Abort("block %u: threads %u and %u race for byte %zu of shared memory", block_index.x,
        warp * kWarpThreads + static_cast<unsigned>(before.lane), thread, place * kPlaceBytes);
}

void Races::Read(unsigned thread, size_t offset, size_t bytes) {
  const unsigned warp = thread / kWarpThreads;
  Access now = By(thread);
  for (size_t i = offset / kPlaceBytes; i * kPlaceBytes < offset + bytes; ++i) {
    Check(writes_[i].access, writes_[i].warp, thread, i);
    Access& read = reads_[i * warps_ + warp];
    now.several = read.epoch == now.epoch && (read.several || read.lane != now.lane);
    read = now;
  }
}

void Races::Write(unsigned thread, size_t offset, size_t bytes) {
  for (size_t i = offset / kPlaceBytes; i * kPlaceBytes < offset + bytes; ++i) {
    Check(writes_[i].access, writes_[i].warp, thread, i);
    for (unsigned warp = 0; warp < warps_; ++warp) Check(reads_[i * warps_ + warp], warp, thread, i);
    writes_[i] = {By(thread), thread / kWarpThreads, fences_[thread].size()};
  }
}

void Races::ReadAsync(unsigned thread, size_t offset, size_t bytes) {
  Read(thread, offset, bytes);
  for (size_t i = offset / kPlaceBytes; i * kPlaceBytes < offset + bytes; ++i) {
    const LastWrite& write = writes_[i];
    if (write.access.epoch == 0) continue;
    const unsigned writer = write.warp * kWarpThreads + static_cast<unsigned>(write.access.lane);
    const std::vector<uint64_t>& fences = fences_[writer];
    const unsigned warp = thread / kWarpThreads;
    const bool fenced =
        write.fences < fences.size() && (write.warp == warp || fences[write.fences] <= clocks_[warp][write.warp]);
    if (!fenced) {
      Abort("block %u: thread %u multiplies byte %zu of shared memory, which thread %u has not fenced", block_index.x,
            thread, i * kPlaceBytes, writer);
    }
  }
}

}  // namespace skim::on_cpu
