// What kernels use of Hopper (custom_ops/cuda/gpu/warpgroup.cuh), for a C++ compiler. Addresses in shared memory are
// offsets from its begin, which lies at a multiple of 1024 bytes.
#pragma once

#include <device.cuh>

#include "multiplies.h"

namespace skim::cuda {

SKIM_DEVICE char* AlignedSharedMemory() { return SharedMemory(); }

SKIM_DEVICE uint32_t SharedAddress(const char* shared) { return static_cast<uint32_t>(shared - SharedMemory()); }

template <int kTokenTiles>
SKIM_DEVICE void MultiplyAddAsync(float (&d)[kTokenTiles][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kTokenTiles == 8 || kTokenTiles == 16);
  on_cpu::MultiplyAddAsync(HalfToFloat, 8 * kTokenTiles, d[0], a, b);
}

template <int kTokenTiles>
SKIM_DEVICE void MultiplyAddAsyncBfloat16(float (&d)[kTokenTiles][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kTokenTiles == 8 || kTokenTiles == 16);
  on_cpu::MultiplyAddAsync(BfloatToFloat, 8 * kTokenTiles, d[0], a, b);
}

SKIM_DEVICE void FenceMultiplies() { on_cpu::FenceMultiplies(); }

SKIM_DEVICE void CommitMultiplies() { on_cpu::CommitMultiplies(); }

template <int kPending>
SKIM_DEVICE void WaitForMultiplies() {
  on_cpu::WaitForMultiplies(kPending);
}

SKIM_DEVICE void FenceForMultiplies() { on_cpu::RecordFence(); }

SKIM_DEVICE void WaitAtBarrier(int barrier, int threads) { on_cpu::MeetAtBarrier(barrier, threads, true); }
SKIM_DEVICE void ArriveAtBarrier(int barrier, int threads) { on_cpu::MeetAtBarrier(barrier, threads, false); }

template <int kRegisters>
SKIM_DEVICE void TakeRegisters() {
  on_cpu::ChangeRegisters(kRegisters, true);
}
template <int kRegisters>
SKIM_DEVICE void GiveRegisters() {
  on_cpu::ChangeRegisters(kRegisters, false);
}

}  // namespace skim::cuda
