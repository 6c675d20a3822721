// Up to 16 tokens of float16 a block.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int Decode16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  return LaunchDecode16<Half>(layer, x, M, epilogue, y, stream, Decode8);
}

}  // namespace skim::cuda
