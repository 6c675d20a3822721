// Up to 8 tokens of float32 a block.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int DecodeFloat32(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchDecode<float, 1, 1>(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
