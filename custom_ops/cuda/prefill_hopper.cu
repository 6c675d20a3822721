// float16 on Hopper, up to 128 tokens a block.
#include "gpu/prefill_hopper.cuh"
#include "launchers.h"

namespace skim::cuda {
namespace {

// Tiles of fewer rows where larger ones would leave multiprocessors without a block.
template <LevelKind kTable>
int LaunchSomeRows(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const bool few = CountHopperBlocks<2>(layer.layer, M) < CurrentGpu().multiprocessors;
  return (few ? LaunchHopperPrefill<kTable, 1> : LaunchHopperPrefill<kTable, 2>)(layer, x, M, epilogue, y, stream);
}

}  // namespace

int PrefillHopper(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const auto launch = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? LaunchSomeRows<LevelKind::kTableInt8>
                          : LaunchSomeRows<LevelKind::kTableFloat16>;
  return launch(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
