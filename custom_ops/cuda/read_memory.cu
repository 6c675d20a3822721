#include <algorithm>

#include "gpu/read_memory.cuh"
#include "gpu/tile.cuh"
#include "skim/cuda.h"

namespace skim::cuda {

int SumWords(const void* data, int64_t bytes, uint64_t* sum, void* stream) {
  const int error = Launch(ZeroKernel, 1, 32, 0, stream, sum);
  if (error != 0 || bytes == 0) return error;
  const int64_t vectors = bytes / sizeof(uint4);
  const int64_t blocks = std::min(kReadBlocks, CeilDiv(vectors + 1, kReadThreads));
  return Launch(SumKernel, blocks, kReadThreads, 0, stream, static_cast<const uint4*>(data), vectors,
                static_cast<int>(bytes % sizeof(uint4)), blocks * kReadThreads, sum);
}

}  // namespace skim::cuda
