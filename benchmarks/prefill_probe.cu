// The prefill kernels for rows of one class each and no column scale: their machine code, without what a launch of this
// kind does not run.
#include "gpu/prefill.cuh"
#include "gpu/prefill_hopper.cuh"

namespace skim::cuda {

// The tile of a block, of one class.
template <int kClass>
SKIM_DEVICE RowRun OnlyRun(const DeviceLayer& device) {
  RowRun run = device.layer.runs[0];
  run.row_class = kClass;
  return run;
}

template <LevelKind kTable, int kClass>
__global__ void __launch_bounds__(Prefill<kTable>::kThreads, 2)
    MmaProbe(const DeviceLayer device, const Half* x, int K, Epilogue epilogue, Half* y) {
  using Kernel = Prefill<kTable>;
  __builtin_assume(K > 0 && K % kSuperblockColumns == 0);
  const RowRun run = OnlyRun<kClass>(device);
  const RowTile tile{run, static_cast<int>(blockIdx.x) * Kernel::kRows};
  char* shared = SharedMemory();
  Kernel::Multiply(tile, {x, nullptr, Kernel::kTokens, K}, shared);
  __syncthreads();
  Kernel::Store(tile, device, Kernel::kTokens, shared, epilogue, y);
}

template <LevelKind kTable, int kClass, int kRowTiles, int kTokenTiles>
__global__ void __launch_bounds__(HopperPrefill<Half, kRowTiles, kTokenTiles>::kThreads, 1)
    WarpgroupProbe(const DeviceLayer device, const Half* x, int K, Epilogue epilogue, Half* y) {
  using Kernel = HopperPrefill<Half, kRowTiles, kTokenTiles>;
  __builtin_assume(K > 0 && K % kSuperblockColumns == 0);
  const RowRun run = OnlyRun<kClass>(device);
  const RowTile tile{run, static_cast<int>(blockIdx.x) * Kernel::kRows};
  char* shared = AlignedSharedMemory();
  const int group = threadIdx.x / kWarpgroup;
  if (group == Kernel::kGroups) {
    GiveRegisters<Kernel::kFillerRegisters>();
    Kernel::template Fill<IsAffine(kClass)>({x, nullptr, Kernel::kTokens, K}, shared);
    __syncthreads();
    return;
  }
  TakeRegisters<Kernel::kMultiplierRegisters>();
  typename Kernel::Sums sums = {};
  constexpr LevelKind kKind = IsAffine(kClass) ? LevelKind::kAffine : kTable;
  using Code = RowCode<ClassBits(kClass), ClassMemory(kClass)>;
  Kernel::template Multiply<kKind, Code>(Kernel::RowsOf(group, tile), K, {shared, group, CountStages(K)}, sums);
  __syncthreads();
  Kernel::Store(Kernel::RowsOf(group, tile), device, Kernel::kTokens, sums, shared, group, epilogue, y);
}

#define SKIM_PROBE(table, row_class)                                                                                \
  template __global__ void MmaProbe<table, row_class>(DeviceLayer, const Half*, int, Epilogue, Half*);              \
  template __global__ void WarpgroupProbe<table, row_class, 1, 8>(DeviceLayer, const Half*, int, Epilogue, Half*);  \
  template __global__ void WarpgroupProbe<table, row_class, 1, 16>(DeviceLayer, const Half*, int, Epilogue, Half*); \
  template __global__ void WarpgroupProbe<table, row_class, 2, 16>(DeviceLayer, const Half*, int, Epilogue, Half*);
SKIM_PROBE(LevelKind::kTableInt8, 1)
SKIM_PROBE(LevelKind::kTableInt8, 2)
SKIM_PROBE(LevelKind::kTableInt8, 3)
SKIM_PROBE(LevelKind::kTableInt8, 5)
SKIM_PROBE(LevelKind::kTableFloat16, 2)
SKIM_PROBE(LevelKind::kTableInt8, 11)  // affine
SKIM_PROBE(LevelKind::kTableInt8, 18)  // windows of 2, 3 and 4 bits
SKIM_PROBE(LevelKind::kTableInt8, 20)
SKIM_PROBE(LevelKind::kTableInt8, 21)

}  // namespace skim::cuda
