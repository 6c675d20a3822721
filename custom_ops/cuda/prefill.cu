// float16, up to 64 tokens a block.
#include "gpu/prefill.cuh"
#include "launchers.h"

namespace skim::cuda {

int PrefillFloat16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const int64_t blocks = CountTiles(layer.layer, Prefill::kRows) * CeilDiv(M, Prefill::kTokens);
  return Launch(PrefillKernel, blocks, Prefill::kThreads, 2 * Prefill::kStageBytes, stream, layer,
                static_cast<const Half*>(x), M, epilogue, static_cast<Half*>(y));
}

}  // namespace skim::cuda
