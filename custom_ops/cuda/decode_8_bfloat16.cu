// Up to 8 tokens of bfloat16 a block.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int Decode8Bfloat16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchDecode8<Bfloat16>(layer, x, M, epilogue, y, stream, PrefillBfloat16);
}

}  // namespace skim::cuda
