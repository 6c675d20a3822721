// The decode kernel for rows of one class each, one token and no column scale: its machine code, without what a launch
// of this kind does not run.
#include "gpu/decode.cuh"

namespace skim::cuda {

template <LevelKind kKind, int kBits>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    Probe(const DeviceLayer device, const Half* x, int K, Epilogue epilogue, Half* y) {
  using Kernel = Decode<Half, 1, 1>;
  __builtin_assume(K > 0 && K % (2 * kSuperblockColumns) == 0);
  const RowTile tile{device.layer.runs[0], static_cast<int>(blockIdx.x) * Kernel::kRows};
  const Activations<Half> activations{x, nullptr, 1, K};
  char* shared = SharedMemory();
  Kernel::template Multiply<kKind, kBits>(tile, activations, shared);
  __syncthreads();
  typename Kernel::Parts(shared).Store(tile, device, 1, epilogue, y);
}

#define SKIM_PROBE(kind, bits) \
  template __global__ void Probe<kind, bits>(DeviceLayer, const Half*, int, Epilogue, Half*);
#define SKIM_PROBES(kind) \
  SKIM_PROBE(kind, 1)     \
  SKIM_PROBE(kind, 2)     \
  SKIM_PROBE(kind, 3)     \
  SKIM_PROBE(kind, 4) SKIM_PROBE(kind, 5) SKIM_PROBE(kind, 6) SKIM_PROBE(kind, 7) SKIM_PROBE(kind, 8)
SKIM_PROBES(LevelKind::kTableInt8)
SKIM_PROBES(LevelKind::kTableFloat16)
SKIM_PROBES(LevelKind::kAffine)

}  // namespace skim::cuda
