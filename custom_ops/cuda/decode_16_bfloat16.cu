// Up to 16 tokens of bfloat16 a block.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int Decode16Bfloat16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchDecode16<Bfloat16>(layer, x, M, epilogue, y, stream, Decode8Bfloat16);
}

}  // namespace skim::cuda
