#include "races.h"

#include "grid.h"

namespace skim::on_cpu {

void Races::Reserve(size_t shared_bytes) {
  const size_t places = (shared_bytes + kPlaceBytes - 1) / kPlaceBytes;
  if (places_.size() < places) places_.resize(places);
}

Races::Access Races::By(unsigned thread) const { return {block_epoch_, warp_epochs_[thread / kWarp], thread, false}; }

bool Races::SameWarpAndEpoch(const Access& access, const Access& other) {
  return access.block_epoch == other.block_epoch && access.thread / kWarp == other.thread / kWarp &&
         access.warp_epoch == other.warp_epoch;
}

void Races::Check(const Access& before, const Access& now, size_t place) {
  if (before.block_epoch != now.block_epoch) return;
  const bool same_warp = before.thread / kWarp == now.thread / kWarp;
  if (same_warp && (before.warp_epoch != now.warp_epoch || (before.thread == now.thread && !before.several))) return;
  Abort("block %u: threads %u and %u race for byte %zu of shared memory", block_index.x, before.thread, now.thread,
        place * kPlaceBytes);
}

void Races::Read(unsigned thread, size_t offset, size_t bytes) {
  const Access now = By(thread);
  for (size_t i = offset / kPlaceBytes; i * kPlaceBytes < offset + bytes; ++i) {
    Check(places_[i].write, now, i);
    Access(&reads)[2] = places_[i].reads;
    if (reads[0].thread / kWarp != thread / kWarp) reads[1] = reads[0];
    const bool several = SameWarpAndEpoch(reads[0], now) && (reads[0].several || reads[0].thread != thread);
    reads[0] = now;
    reads[0].several = several;
  }
}

void Races::Write(unsigned thread, size_t offset, size_t bytes) {
  const Access now = By(thread);
  for (size_t i = offset / kPlaceBytes; i * kPlaceBytes < offset + bytes; ++i) {
    Check(places_[i].write, now, i);
    for (const Access& read : places_[i].reads) Check(read, now, i);
    places_[i].write = now;
  }
}

}  // namespace skim::on_cpu
