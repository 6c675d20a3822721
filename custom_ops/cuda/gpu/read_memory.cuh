// Reading memory as fast as a GPU can, to measure how fast that is: nothing that models consist of.
#pragma once

#include <device.cuh>

namespace skim::cuda {

constexpr int kReadThreads = 256;
constexpr int64_t kReadBlocks = 4096;  // more than fit: blocks that end early leave no multiprocessor idle
constexpr int kReadVectors = 8;        // that a thread has on their way at once

__global__ void __launch_bounds__(32, 1) ZeroKernel(uint64_t* sum) {
  if (threadIdx.x == 0) *sum = 0;
}

SKIM_DEVICE uint64_t WordOf(uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; }

// Adds the sum of 64-bit words: of `vectors` vectors, and of `rest` bytes behind them, filled up with zeros. `stride`
// is the number of all threads.
__global__ void __launch_bounds__(kReadThreads, 4)
    SumKernel(const uint4* data, int64_t vectors, int rest, int64_t stride, uint64_t* sum) {
  const int64_t first = int64_t{blockIdx.x} * kReadThreads + threadIdx.x;
  uint64_t total = 0;
  for (int64_t at = first; at < vectors; at += stride * kReadVectors) {
    uint4 part[kReadVectors];
#pragma unroll
    for (int i = 0; i < kReadVectors; ++i) {
      const int64_t vector = at + i * stride;
      part[i] = vector < vectors ? LoadOnce(data + vector) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kReadVectors; ++i) {
      total += WordOf(part[i].x, part[i].y) + WordOf(part[i].z, part[i].w);
    }
  }
  if (first == 0) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(data + vectors);
    for (int i = 0; i < rest; ++i) total += uint64_t{Load(bytes + i)} << i % 8 * 8;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffff, total, distance);
  if (threadIdx.x % 32 == 0) AddAtomically(sum, total);
}

}  // namespace skim::cuda
