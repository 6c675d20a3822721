// Which kernel multiplies how many tokens.
#include "launchers.h"

namespace skim::cuda {
namespace {

// From here on activations take more room in a block's shared memory than what 16 rows more of weights would.
constexpr int64_t kFewTokens = 4;
constexpr int64_t kDecodeTokens = 16;

MatmulLauncher& LauncherFor(FloatType type, int64_t M) {
  if (type == FloatType::kFloat32) return MatmulFloat32;
  if (M <= kFewTokens) return Decode8;
  if (M <= kDecodeTokens) return Decode16;
#ifdef SKIM_CUDA_HOPPER
  if (IsHopper()) return PrefillHopper;
#endif
  return PrefillFloat16;
}

}  // namespace

int Matmul(const DeviceLayer& layer, const void* x, FloatType type, int64_t M, Epilogue epilogue, void* y,
           void* stream) {
  return M == 0 ? 0 : LauncherFor(type, M)(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
