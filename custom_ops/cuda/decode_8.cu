// Up to 8 tokens of float16 a block.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int Decode8(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchDecode<Half, 1, 1>(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
