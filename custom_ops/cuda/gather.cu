#include "gpu/gather.cuh"
#include "launchers.h"

namespace skim::cuda {
namespace {

template <typename Float>
int LaunchGather(const DeviceLayer& layer, const int64_t* ids, int64_t count, void* y, void* stream) {
  return Launch(GatherKernel<Float>, count, kGatherThreads, 0, stream, layer, ids, static_cast<Float*>(y));
}

}  // namespace

int Gather(const DeviceLayer& layer, const int64_t* ids, int64_t count, void* y, FloatType type, void* stream) {
  if (!IsSupported(type)) return kNotSupported;
  if (count == 0) return 0;
  const auto launch = type == FloatType::kFloat32   ? LaunchGather<float>
                      : type == FloatType::kFloat16 ? LaunchGather<Half>
                                                    : LaunchGather<Bfloat16>;
  return launch(layer, ids, count, y, stream);
}

}  // namespace skim::cuda
