// The decode kernel for rows of one class each, one token and no column scale: its machine code, without what a launch
// of this kind does not run.
#include "gpu/decode.cuh"

namespace skim::cuda {

template <LevelKind kKind, int kBits, bool kIntegers>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    Probe(const DeviceLayer device, const Half* x, const DecodePlan plan, Epilogue epilogue, Half* y) {
  constexpr LevelKind kTable = kKind == LevelKind::kTableFloat16 ? kKind : LevelKind::kTableInt8;
  using Kernel = Decode<Half, kTable, 1, 1, 4, kIntegers>;
  const int64_t K = device.layer.weights.K;
  __builtin_assume(K > 0 && K % (2 * kSuperblockColumns) == 0);
  __builtin_assume(plan.tokens == 1 && plan.units == Kernel::WarpUnits(K));
  __builtin_assume(device.layer.weights.column_scale.data == nullptr);
  Kernel::Run(device, x, 1, plan, epilogue, y, [](int, auto&& body) {
    body(std::integral_constant<LevelKind, kKind>{}, std::integral_constant<int, kBits>{});
  });
}

#define SKIM_PROBE(kind, bits, integers) \
  template __global__ void Probe<kind, bits, integers>(DeviceLayer, const Half*, DecodePlan, Epilogue, Half*);
#define SKIM_NARROW_PROBES(kind, integers) \
  SKIM_PROBE(kind, 1, integers)            \
  SKIM_PROBE(kind, 2, integers) SKIM_PROBE(kind, 3, integers) SKIM_PROBE(kind, 4, integers)
#define SKIM_PROBES(kind, integers)  \
  SKIM_NARROW_PROBES(kind, integers) \
  SKIM_PROBE(kind, 5, integers)      \
  SKIM_PROBE(kind, 6, integers) SKIM_PROBE(kind, 7, integers) SKIM_PROBE(kind, 8, integers)
SKIM_PROBES(LevelKind::kTableInt8, false)
SKIM_PROBES(LevelKind::kTableFloat16, false)
SKIM_PROBES(LevelKind::kAffine, false)
SKIM_NARROW_PROBES(LevelKind::kTableInt8, true)
SKIM_PROBES(LevelKind::kAffine, true)

}  // namespace skim::cuda
