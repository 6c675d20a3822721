// The decode kernel for rows of one class each, one token and no column scale: its machine code, without what a launch
// of this kind does not run.
#include "gpu/decode.cuh"

namespace skim::cuda {

template <LevelKind kTable, int kClass, bool kIntegers>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    Probe(const DeviceLayer device, const Half* x, const DecodePlan plan, Epilogue epilogue, Half* y) {
  constexpr LevelKind kKind = IsAffine(kClass) ? LevelKind::kAffine : kTable;
  using Kernel = Decode<Half, kTable, 1, 1, 4, kIntegers>;
  const int64_t K = device.layer.weights.K;
  __builtin_assume(K > 0 && K % (2 * kSuperblockColumns) == 0);
  __builtin_assume(plan.tokens == 1 && plan.units == Kernel::WarpUnits(K));
  __builtin_assume(device.layer.weights.column_scale.data == nullptr);
  Kernel::Run(device, x, 1, plan, epilogue, y, [](int, auto&& body) {
    body(std::integral_constant<LevelKind, kKind>{}, RowCode<ClassBits(kClass), ClassMemory(kClass)>{});
  });
}

#define SKIM_PROBE(table, row_class, integers) \
  template __global__ void Probe<table, row_class, integers>(DeviceLayer, const Half*, DecodePlan, Epilogue, Half*);
#define SKIM_NARROW_PROBES(table, first, integers) \
  SKIM_PROBE(table, first, integers)               \
  SKIM_PROBE(table, first + 1, integers)           \
  SKIM_PROBE(table, first + 2, integers) SKIM_PROBE(table, first + 3, integers)
#define SKIM_PROBES(table, first, integers)  \
  SKIM_NARROW_PROBES(table, first, integers) \
  SKIM_NARROW_PROBES(table, first + 4, integers)
SKIM_PROBES(LevelKind::kTableInt8, 0, false)
SKIM_PROBES(LevelKind::kTableFloat16, 0, false)
SKIM_PROBES(LevelKind::kTableInt8, 8, false)  // affine
SKIM_NARROW_PROBES(LevelKind::kTableInt8, 0, true)
SKIM_PROBES(LevelKind::kTableInt8, 8, true)
// Windows; those of 4 bits are not looked up in registers, so that there is no product of integers.
SKIM_NARROW_PROBES(LevelKind::kTableInt8, 16, false)
SKIM_PROBE(LevelKind::kTableInt8, 20, false)
SKIM_PROBE(LevelKind::kTableInt8, 21, false)
SKIM_NARROW_PROBES(LevelKind::kTableInt8, 16, true)
SKIM_PROBE(LevelKind::kTableInt8, 20, true)

}  // namespace skim::cuda
