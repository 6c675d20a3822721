// Which kernel multiplies how many tokens.
#include "launchers.h"

namespace skim::cuda {
namespace {

// From here on activations take more room in a block's shared memory than what 16 rows more of weights would.
constexpr int64_t kFewTokens = 4;
constexpr int64_t kDecodeTokens = 16;

MatmulLauncher& LauncherFor(FloatType type, int64_t M) {
  if (type == FloatType::kFloat32) return MatmulFloat32;
  const bool half = type == FloatType::kFloat16;
  if (M <= kFewTokens) return half ? Decode8 : Decode8Bfloat16;
  if (M <= kDecodeTokens) return half ? Decode16 : Decode16Bfloat16;
#ifdef SKIM_CUDA_HOPPER
  if (CurrentGpu().capability == kHopperCapability) return half ? PrefillHopper : PrefillHopperBfloat16;
#endif
  return half ? PrefillFloat16 : PrefillBfloat16;
}

}  // namespace

int Matmul(const DeviceLayer& layer, const void* x, FloatType type, int64_t M, Epilogue epilogue, void* y,
           void* stream) {
  if (!IsSupported(type)) return kNotSupported;
  return M == 0 ? 0 : LauncherFor(type, M)(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
