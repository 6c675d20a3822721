// float16, up to 64 tokens a block.
#include "gpu/prefill.cuh"
#include "launchers.h"

namespace skim::cuda {

int PrefillFloat16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchPrefill<Half>(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
