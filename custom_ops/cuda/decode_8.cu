// Up to 8 tokens of float16 a block.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int Decode8(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchDecode8<Half>(layer, x, M, epilogue, y, stream, PrefillFloat16);
}

}  // namespace skim::cuda
