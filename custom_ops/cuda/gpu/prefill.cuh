// The product of many tokens: a block has a tile of rows and one of tokens, its warps share the rows. Codes become
// tensor core fragments in registers, once for all tokens of the tile; the next activations are on their way to shared
// memory meanwhile. A stage is half a superblock: codes 0..3, then 4..7.
#pragma once

#include <device.cuh>

#include "activations.cuh"
#include "codes.cuh"
#include "levels.cuh"
#include "tile.cuh"

namespace skim::cuda {

template <LevelKind kTable, typename Element = Half>
struct Prefill {
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kRowTiles = 2, kWarpRows = kMmaRows * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kTokenTiles = 8, kTokens = kMmaTokens * kTokenTiles;
  static constexpr int kSumTiles = kTokenTiles / kWarps;  // of which a warp adds up the tokens
  static constexpr int kWords = 2;                        // of codes that a thread decodes at once
  static constexpr int kCodes = 4;                        // of a stage

  using Tile = ActivationTile<Element, kCodes>;
  using Two = ElementPair<Element>;
  static constexpr int kStageBytes = kTokens * Tile::kTokenBytes;
  static constexpr int kProductFloats = ProductTile<kRows>::Floats(kTokens);
  static constexpr int kBytes =
      2 * kStageBytes > (kProductFloats + kTokens) * 4 ? 2 * kStageBytes : (kProductFloats + kTokens) * 4;

  static_assert(kRows == kThreads, "a thread stores a row");

  // Two words of each of the thread's rows as fragments, of the four codes of a stage.
  using Fragments = uint32_t[kCodes][kWords][kRowTiles][4];

  template <LevelKind kKind, typename Code, int kFirstCode>
  static SKIM_DEVICE void Decode(const RowTile& tile, int warp_row, int K, int block, Fragments& fragments) {
    using RowLevels = Levels<kKind, Code, Place::kCache, Element>;
    constexpr int kBits = Code::kBits, kTogether = RowLevels::kTogether;
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int64_t row = tile.first + warp_row + kMmaRows * r + 8 * h + g;
        if (row >= tile.run.count) row = tile.run.count - 1;  // computed once more, never stored
        RowLevels levels;
        levels.Prepare(tile.run.codebook, row, nullptr, h);
        uint32_t words[kBits][kWords];
        LoadCodes<kBits>(tile.run.codes + row * RowBytes(kBits, K), K, block, kWords * c, words);
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          uint32_t codes[kBits];
#pragma unroll
          for (int v = 0; v < kBits; ++v) codes[v] = words[v][w];
#pragma unroll
          for (int i = 0; i < kCodes / kTogether; ++i) {
            uint32_t halves[kTogether][2];
            levels.Decode(codes, kFirstCode / kTogether + i, halves);
#pragma unroll
            for (int k = 0; k < kTogether; ++k) {
              uint32_t (&a)[4] = fragments[CodeOfStep(kBits, kTogether, i, k)][w][r];
              a[h] = halves[k][0], a[2 + h] = halves[k][1];
            }
          }
        }
      }
    }
  }

  // The products of the block's rows and tokens, to shared memory, and behind them the sums of tokens.
  static SKIM_DEVICE void Multiply(const RowTile& tile, const Activations<Element>& x, char* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    const int warp_row = warp * kWarpRows;
    const bool needs_sums = IsAffine(tile.run.row_class);
    const bool idle = tile.first + warp_row >= tile.run.count && !needs_sums;
    const uint32_t ones[4] = {Two::kOnes, Two::kOnes, Two::kOnes, Two::kOnes};
    float sums[kRowTiles][kTokenTiles][4] = {}, token_sums[kSumTiles][4] = {};
    const int stages = 2 * ((x.K + kSuperblockColumns - 1) / kSuperblockColumns);
#pragma unroll 1
    for (int stage = -1; stage < stages; ++stage) {
      const int next = stage + 1;
      if (next < stages) {
        Tile(shared + next % 2 * kStageBytes, next / 2, next % 2 * kCodes).Stage(x, threadIdx.x, kThreads);
      }
      CommitCopies();
      if (stage < 0) continue;
      Fragments fragments;
      if (!idle) {
        WithLevels<kTable>(tile.run.row_class, [&](auto kind, auto code) __attribute__((always_inline)) {
          if (stage % 2 == 0) {
            Decode<decltype(kind)::value, decltype(code), 0>(tile, warp_row, x.K, stage / 2, fragments);
          } else {
            Decode<decltype(kind)::value, decltype(code), kCodes>(tile, warp_row, x.K, stage / 2, fragments);
          }
        });
      }
      WaitForCopies<1>();
      __syncthreads();
      if (!idle) {
        const FragmentReader<kTokenTiles> reader(Tile(shared + stage % 2 * kStageBytes, stage / 2), kWords * c,
                                                 kTokens);
#pragma unroll
        for (int j = 0; j < kCodes; ++j) {
#pragma unroll
          for (int t = 0; t < kTokenTiles; ++t) {
            uint32_t b[kWords][2];
            reader.Fragments(t, j, 0, b);
#pragma unroll
            for (int w = 0; w < kWords; ++w) {
#pragma unroll
              for (int r = 0; r < kRowTiles; ++r) Two::MultiplyAdd(sums[r][t], fragments[j][w][r], b[w]);
              if (needs_sums && t / kSumTiles == warp) Two::MultiplyAdd(token_sums[t % kSumTiles], ones, b[w]);
            }
          }
        }
      }
      __syncthreads();  // before the tile is filled again
    }

    auto* products = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        ProductTile<kRows>(products).Write(warp_row + kMmaRows * r, kMmaTokens * t, sums[r][t]);
      }
    }
#pragma unroll
    for (int t = 0; g == 0 && t < kSumTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        products[kProductFloats + kMmaTokens * (warp * kSumTiles + t) + 2 * c + i] = token_sums[t][i];
      }
    }
  }

  static SKIM_DEVICE void Store(const RowTile& tile, const DeviceLayer& device, int count, const char* shared,
                                Epilogue epilogue, Element* y) {
    const int row = threadIdx.x;
    if (tile.first + row >= tile.run.count) return;
    const int n = OriginalRow(device.layer, tile.run, tile.first + row);
    const RowOutput<Element> output(device, tile.run, tile.first + row, n, epilogue, y);
    const auto* products = reinterpret_cast<const float*>(shared);
    for (int token = 0; token < count; ++token) {
      output.Store(token, ProductTile<kRows>::Read(products, row, token), products[kProductFloats + token]);
    }
  }
};

template <LevelKind kTable, typename Element>
__global__ void __launch_bounds__(Prefill<kTable, Element>::kThreads, 2)
    PrefillKernel(const DeviceLayer device, const Element* x, int64_t M, Epilogue epilogue, Element* y) {
  if constexpr (kIsSupported<Element>) {
    using Kernel = Prefill<kTable, Element>;
    const PackedLinear& weights = device.layer.weights;
    const BlockTile tile = FindTile(device.layer, M, Kernel::kRows, Kernel::kTokens);
    char* shared = SharedMemory();
    Kernel::Multiply(
        tile.rows,
        {x + tile.first_token * weights.K, weights.column_scale.data, tile.tokens, static_cast<int>(weights.K)},
        shared);
    __syncthreads();
    Kernel::Store(tile.rows, device, tile.tokens, shared, epilogue, y + tile.first_token * weights.N);
  }
}

template <typename Element>
int LaunchPrefill(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  using Kernel = Prefill<LevelKind::kTableInt8, Element>;  // the kind of tables changes nothing of its shape
  const int64_t blocks = CountTiles(layer.layer, Kernel::kRows) * CeilDiv(M, Kernel::kTokens);
  const auto kernel = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? PrefillKernel<LevelKind::kTableInt8, Element>
                          : PrefillKernel<LevelKind::kTableFloat16, Element>;
  return Launch(kernel, blocks, Kernel::kThreads, Kernel::kBytes, stream, layer, static_cast<const Element*>(x), M,
                epilogue, static_cast<Element*>(y));
}

}  // namespace skim::cuda
