#include "gpu/gather.cuh"

namespace skim::cuda {
namespace {

template <typename Float>
int LaunchGather(const DeviceLayer& layer, const int64_t* ids, int64_t count, void* y, void* stream) {
  return Launch(GatherKernel<Float>, count, kGatherThreads, 0, stream, layer, ids, static_cast<Float*>(y));
}

}  // namespace

int Gather(const DeviceLayer& layer, const int64_t* ids, int64_t count, void* y, FloatType type, void* stream) {
  if (count == 0) return 0;
  return (type == FloatType::kFloat16 ? LaunchGather<Half> : LaunchGather<float>)(layer, ids, count, y, stream);
}

}  // namespace skim::cuda
