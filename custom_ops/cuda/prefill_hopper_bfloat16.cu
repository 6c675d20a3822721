// bfloat16 on Hopper, up to 128 tokens a block.
#include "gpu/prefill_hopper.cuh"
#include "launchers.h"

namespace skim::cuda {

int PrefillHopperBfloat16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y,
                          void* stream) {
  return LaunchHopperPrefill<Bfloat16>(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
