// Any number of tokens of float32.
#include "gpu/float32.cuh"
#include "launchers.h"

namespace skim::cuda {

int MatmulFloat32(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const auto launch = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? LaunchFloat32<LevelKind::kTableInt8>
                          : LaunchFloat32<LevelKind::kTableFloat16>;
  return launch(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
