// The product of many tokens on Hopper. Two warpgroups of a block have rows of their own: they turn codes into
// fragments in registers, once for up to 128 tokens, and multiply them with activations in shared memory while they
// decode the next ones. A third one fills a ring of stages with activations.
#pragma once

#include <device.cuh>
#include <type_traits>
#include <warpgroup.cuh>

#include "activations.cuh"
#include "levels.cuh"
#include "panels.cuh"
#include "skim/cuda.h"
#include "tile.cuh"

namespace skim::cuda {

// MultiplyAddAsync of elements.
template <typename Element, int kTokenTiles>
SKIM_DEVICE void MultiplyAddAsync(float (&d)[kTokenTiles][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<Element, Half>) {
    cuda::MultiplyAddAsync(d, a, b);
  } else {
    MultiplyAddAsyncBfloat16(d, a, b);
  }
}

// A stage's word of each vector of rows g and g + 8 of a warp's 16; those that do not exist are 0. `offsets`: where the
// thread's first words of these rows lie. Two stages share each sector, so these loads leave it in the L1 cache.
template <int kBits>
SKIM_DEVICE void LoadStageCodes(const uint8_t* codes, const uint32_t (&offsets)[2], int K, int stage,
                                uint32_t (&words)[2][kBits]) {
  const int block = stage / 2, lane = stage % 2 * kStageLanes;
  const int lanes = (block + 1) * kSuperblockColumns <= K ? kLanes : TailLanes(K);
  const bool exists = lane + 4 * static_cast<int>(threadIdx.x % 4) < lanes;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t from = offsets[h] + static_cast<uint32_t>(block * kBits * kLanes + lane);
#pragma unroll
    for (int v = 0; v < kBits; ++v) {
      words[h][v] = exists ? Load(reinterpret_cast<const uint32_t*>(codes + (from + v * lanes))) : 0;
    }
  }
}

// kRowTiles: of 64 rows, that each of the two warpgroups has.
template <typename Element, int kRowTiles, int kTokenTiles>
struct HopperPrefill {
  static constexpr int kGroups = 2, kThreads = (kGroups + 1) * kWarpgroup;
  static constexpr int kGroupRows = kWarpgroupRows * kRowTiles, kRows = kGroups * kGroupRows;
  static constexpr int kTokens = kMmaTokens * kTokenTiles;
  static constexpr int kStages = 3;

  // Registers of a thread that fills stages, and of one that multiplies: together as many as three warpgroups are
  // launched with. With fewer rows the stages are needed faster, and the sums leave room for more loads on their way.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kFillerRegisters = kRowTiles == 1 ? 104 : 72;
  static constexpr int kMultiplierRegisters = kRowTiles == 1 ? 200 : 216;
  static_assert(kFillerRegisters + kGroups * kMultiplierRegisters <= (kGroups + 1) * kLaunchRegisters);
  static constexpr int kBatch = kRowTiles == 1 && kTokenTiles == 16 ? 8 : 4;

  using Panels = StagePanels<kTokens>;
  using Products = ProductTile<kWarpgroupRows>;
  static constexpr int kProductBytes = Products::Floats(kTokens) * 4;  // of a warpgroup
  static constexpr int kTokenSums = kStages * Panels::kBytes;          // behind the stages
  static constexpr int kSumBytes = kTokens * kStageCodes * 4;          // of their parts, which come last
  static constexpr int kTile = kTokenSums + kTokens * 4 + kSumBytes;
  static_assert(kGroups * kProductBytes <= kTokenSums);

  // A block's tile, for which no registers are left while it is multiplied.
  struct KeptTile {
    RowRun run;
    int first, tokens;
    int64_t first_token;
  };
  static constexpr int kBytes = kTile + static_cast<int>(sizeof(KeptTile));

  using Sums = float[kRowTiles][kTokenTiles][4];

  // Barriers: `Full` of each stage and multiplying warpgroup, `Free` of each stage.
  static SKIM_DEVICE int Full(int buffer, int group) { return 1 + kGroups * buffer + group; }
  static SKIM_DEVICE int Free(int buffer) { return 1 + kGroups * kStages + buffer; }
  static SKIM_DEVICE int OfGroup(int group) { return 1 + (kGroups + 1) * kStages + group; }

  // A warpgroup's part of the block's rows: none, if it begins behind the run.
  static SKIM_DEVICE RowTile RowsOf(int group, const RowTile& tile) {
    return {tile.run, tile.first + group * kGroupRows};
  }

  template <bool kSums>
  static SKIM_DEVICE void Fill(const Activations<Element>& x, char* shared) {
    using Filler = PanelFiller<Element, kTokens, kBatch, kSums>;
    static_assert(Filler::kSumBytes == kSumBytes);
    const int thread = threadIdx.x % kWarpgroup;
    auto* sums = reinterpret_cast<float*>(shared + kTokenSums);
    const Filler filler(x, thread, sums + kTokens);
    const int stages = CountStages(x.K);
    int buffer = 0;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      filler.Fill(shared + buffer * Panels::kBytes, stage, [&] {
        if (stage >= kStages) WaitAtBarrier(Free(buffer), kThreads);
      });
      FenceForMultiplies();
#pragma unroll
      for (int group = 0; group < kGroups; ++group) ArriveAtBarrier(Full(buffer, group), 2 * kWarpgroup);
      if (++buffer == kStages) buffer = 0;
    }
    WaitAtBarrier(OfGroup(kGroups), kWarpgroup);  // for what the others have added up
    if (thread < kTokens) sums[thread] = Filler::Sum(sums + kTokens, thread);
  }

  // A warpgroup's place among the stages that it multiplies.
  struct Ring {
    char* shared;
    int group, stages;
    int stage = 0, buffer = 0;

    SKIM_DEVICE uint64_t Operand() const { return PanelOperand(shared + buffer * Panels::kBytes); }
    SKIM_DEVICE void WaitUntilFull() const { WaitAtBarrier(Full(buffer, group), 2 * kWarpgroup); }
    // The stage before this one is not needed any more.
    SKIM_DEVICE void FreePrevious() const {
      const bool filled_again = stage > 0 && stage - 1 + kStages < stages;
      if (filled_again) ArriveAtBarrier(Free(buffer == 0 ? kStages - 1 : buffer - 1), kThreads);
    }
    SKIM_DEVICE void Next() {
      ++stage;
      if (++buffer == kStages) buffer = 0;
    }
  };

  // For a warpgroup without rows: another one waits for it.
  static SKIM_DEVICE void Skip(Ring ring) {
#pragma unroll 1
    for (; ring.stage < ring.stages; ring.Next()) {
      ring.WaitUntilFull();
      ring.FreePrevious();
    }
  }

  // Adds the products of a warpgroup's rows.
  template <LevelKind kKind, typename Code>
  static SKIM_DEVICE void Multiply(const RowTile& rows, int K, Ring ring, Sums& sums) {
    const RowRun& run = rows.run;
    using RowLevels = Levels<kKind, Code, Place::kCache, Element>;
    constexpr int kBits = Code::kBits;
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    RowLevels levels[kRowTiles][2];
    const uint8_t* codes = run.codes + rows.first * RowBytes(kBits, K);
    uint32_t offsets[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int row = rows.first + kWarpgroupRows * r + kMmaRows * (threadIdx.x / 32 % 4) + 8 * h + g;
        if (row >= run.count) row = static_cast<int>(run.count) - 1;  // computed once more, never stored
        levels[r][h].Prepare(run.codebook, row, nullptr, h);
        offsets[r][h] = static_cast<uint32_t>((row - rows.first) * RowBytes(kBits, K)) + 4 * c;
      }
    }

    // A step decodes the codes that are decoded together. It writes to one half of the fragments while those of the
    // step before are multiplied. Meanwhile the next row tile's codes are on their way, if need be those of the next
    // stage: the last one's once more, as behind a branch the compiler takes operands for different in each lane. Wide
    // tables take long enough without, and their lookups need the registers.
    constexpr int kTogether = RowLevels::kTogether, kSteps = kStageCodes / kTogether;
    constexpr bool kAhead = kTogether > 1;
    uint32_t fragments[2][kTogether][4], words[2][2][kBits];
    if (kAhead) LoadStageCodes(codes, offsets[0], K, 0, words[0]);
#pragma unroll 1
    for (; ring.stage < ring.stages; ring.Next()) {
      const uint64_t b = ring.Operand();
      const int next = ring.stage + 1 < ring.stages ? ring.stage + 1 : ring.stage;
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        uint32_t (&tile)[2][kBits] = words[r % 2];
        if constexpr (kAhead) {
          LoadStageCodes(codes, offsets[(r + 1) % kRowTiles], K, r + 1 < kRowTiles ? ring.stage : next,
                         words[(r + 1) % 2]);
        } else {
          LoadStageCodes(codes, offsets[r], K, ring.stage, tile);
        }
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          WaitForMultiplies<1>();
          if (r == 0 && i == 1) ring.FreePrevious();
          uint32_t (&a)[kTogether][4] = fragments[i % 2];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            uint32_t halves[kTogether][2];
            levels[r][h].Decode(tile[h], i, halves);
#pragma unroll
            for (int k = 0; k < kTogether; ++k) a[k][h] = halves[k][0], a[k][2 + h] = halves[k][1];
          }
          if (r == 0 && i == 0) ring.WaitUntilFull();
          FenceMultiplies();
#pragma unroll
          for (int k = 0; k < kTogether; ++k) {
            MultiplyAddAsync<Element>(sums[r], a[k], Panels::CodeOperand(b, CodeOfStep(kBits, kTogether, i, k)));
          }
          CommitMultiplies();
        }
      }
      if constexpr (kAhead && kRowTiles % 2 == 1) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int v = 0; v < kBits; ++v) words[0][h][v] = words[1][h][v];
        }
      }
    }
    WaitForMultiplies<0>();
  }

  // Stores a warpgroup's products, by way of shared memory that only it uses.
  static SKIM_DEVICE void Store(const RowTile& rows, const DeviceLayer& device, int count, const Sums& sums,
                                char* shared, int group, Epilogue epilogue, Element* y) {
    const int thread = threadIdx.x % kWarpgroup, warp = thread / 32;
    auto* products = reinterpret_cast<float*>(shared + group * kProductBytes);
    const auto* token_sums = reinterpret_cast<const float*>(shared + kTokenSums);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        Products(products).Write(kMmaRows * warp, kMmaTokens * t, sums[r][t]);
      }
      WaitAtBarrier(OfGroup(group), kWarpgroup);
      const int row = thread % kWarpgroupRows, in_run = rows.first + kWarpgroupRows * r + row;
      if (in_run < rows.run.count) {
        const int n = OriginalRow(device.layer, rows.run, in_run);
        const RowOutput<Element> output(device, rows.run, in_run, n, epilogue, y);
#pragma unroll 2
        for (int token = thread / kWarpgroupRows; token < count; token += kWarpgroup / kWarpgroupRows) {
          output.Store(token, Products::Read(products, row, token), token_sums[token]);
        }
      }
      WaitAtBarrier(OfGroup(group), kWarpgroup);  // before the next tile's products
    }
  }
};

// The tile of this block. Blocks beside each other have the same rows and up to kTogether tiles of tokens, then come
// the next rows: what is on its way at a time is about as many bytes of activations as of weights. These activations
// stay in the L2 cache until all rows are done, however many tokens there are.
SKIM_DEVICE BlockTile FindTileNearOthers(const Layer& layer, int64_t M, int rows, int tokens, int row_tiles) {
  constexpr int kTogether = 8;
  const auto token_tiles = static_cast<int>(CeilDiv(M, tokens));
  const unsigned blocks = static_cast<unsigned>(row_tiles) * kTogether;
  const int first = static_cast<int>(blockIdx.x / blocks) * kTogether, block = static_cast<int>(blockIdx.x % blocks);
  const int together = token_tiles - first < kTogether ? token_tiles - first : kTogether;
  return TileAt(layer, M, rows, tokens, block / together, first + block % together);
}

template <LevelKind kTable, typename Element, int kRowTiles, int kTokenTiles>
__global__ void __launch_bounds__(HopperPrefill<Element, kRowTiles, kTokenTiles>::kThreads, 1)
    HopperPrefillKernel(const DeviceLayer device, const Element* x, int64_t M, int row_tiles, Epilogue epilogue,
                        Element* y) {
  using Kernel = HopperPrefill<Element, kRowTiles, kTokenTiles>;
  const auto K = static_cast<int>(device.layer.weights.K);
  const BlockTile tile = FindTileNearOthers(device.layer, M, Kernel::kRows, Kernel::kTokens, row_tiles);
  char* shared = AlignedSharedMemory();
  auto* kept = reinterpret_cast<typename Kernel::KeptTile*>(shared + Kernel::kTile);
  const int group = threadIdx.x / kWarpgroup;
  if (group == Kernel::kGroups) {
    GiveRegisters<Kernel::kFillerRegisters>();
    if (threadIdx.x % kWarpgroup == 0) *kept = {tile.rows.run, tile.rows.first, tile.tokens, tile.first_token};
    const Activations<Element> x_tile{x + tile.first_token * K, device.layer.weights.column_scale.data, tile.tokens, K};
    if (IsAffine(tile.rows.run.row_class)) {
      Kernel::template Fill<true>(x_tile, shared);
    } else {
      Kernel::template Fill<false>(x_tile, shared);
    }
    __syncthreads();
    return;
  }

  TakeRegisters<Kernel::kMultiplierRegisters>();
  typename Kernel::Sums sums = {};
  const typename Kernel::Ring ring{shared, group, CountStages(K)};
  if (const RowTile rows = Kernel::RowsOf(group, tile.rows); rows.first < rows.run.count) {
    WithLevels<kTable>(rows.run.row_class, [&](auto kind, auto code) __attribute__((always_inline)) {
      Kernel::template Multiply<decltype(kind)::value, decltype(code)>(rows, K, ring, sums);
    });
  } else {
    Kernel::Skip(ring);
  }
  __syncthreads();  // all stages are done: their room is used again
  Kernel::Store(Kernel::RowsOf(group, {kept->run, kept->first}), device, kept->tokens, sums, shared, group, epilogue,
                y + kept->first_token * device.layer.weights.N);
}

// A size of tiles. kTime: what a block takes, in proportion to those of other sizes (benchmarks/prefill_roofline.py).
// `kTable`: the kind of the layer's codebooks.
template <LevelKind kTable, typename Element, int kRowTiles, int kTokenTiles, int kTime>
struct HopperTiles {
  using Kernel = HopperPrefill<Element, kRowTiles, kTokenTiles>;

  static int64_t CountBlocks(const Layer& layer, int64_t M) {
    return CountTiles(layer, Kernel::kRows) * CeilDiv(M, Kernel::kTokens);
  }

  static int64_t Time(const Layer& layer, int64_t M, int multiprocessors) {
    return CeilDiv(CountBlocks(layer, M), multiprocessors) * kTime;
  }

  static int Launch(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
    const auto row_tiles = static_cast<int>(CountTiles(layer.layer, Kernel::kRows));
    return cuda::Launch(HopperPrefillKernel<kTable, Element, kRowTiles, kTokenTiles>, CountBlocks(layer.layer, M),
                        Kernel::kThreads, Kernel::kBytes, stream, layer, static_cast<const Element*>(x), M, row_tiles,
                        epilogue, static_cast<Element*>(y));
  }
};

template <LevelKind kTable, typename Element>
int LaunchFastestTiles(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  using Small = HopperTiles<kTable, Element, 1, 8, 10>;
  using Medium = HopperTiles<kTable, Element, 1, 16, 17>;
  using Large = HopperTiles<kTable, Element, 2, 16, 29>;
  const int multiprocessors = CurrentGpu().multiprocessors;
  const int64_t small = Small::Time(layer.layer, M, multiprocessors);
  const int64_t medium = Medium::Time(layer.layer, M, multiprocessors);
  const int64_t large = Large::Time(layer.layer, M, multiprocessors);
  const auto launch = large <= small && large <= medium ? Large::Launch
                      : medium <= small                 ? Medium::Launch
                                                        : Small::Launch;
  return launch(layer, x, M, epilogue, y, stream);
}

template <typename Element>
int LaunchHopperPrefill(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const auto launch = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? LaunchFastestTiles<LevelKind::kTableInt8, Element>
                          : LaunchFastestTiles<LevelKind::kTableFloat16, Element>;
  return launch(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
