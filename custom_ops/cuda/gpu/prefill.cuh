// The product of many tokens: a block has a tile of rows and one of tokens, its warps share the rows. Codes become
// tensor core fragments in registers, once for all tokens of the tile; the next superblock's activations are on their
// way to shared memory meanwhile.
#pragma once

#include <device.cuh>

#include "activations.cuh"
#include "codes.cuh"
#include "levels.cuh"
#include "product.cuh"
#include "tile.cuh"

namespace skim::cuda {

struct Prefill {
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kRowTiles = 2, kWarpRows = kMmaRows * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kTokenTiles = 8, kTokens = kMmaTokens * kTokenTiles;
  static constexpr int kSumTiles = kTokenTiles / kWarps;  // of which a warp adds up the tokens
  static constexpr int kWords = 2;                        // of each vector that a thread has at once
  static constexpr int kStageBytes = kTokens * ActivationTile<Half>::kTokenBytes;
  static constexpr int kProductFloats = ProductTile<kRows>::Floats(kTokens);

  static_assert(2 * kStageBytes <= kSharedBytes && (kProductFloats + kTokens) * 4 <= kSharedBytes);

  // The products of the block's rows and tokens, to shared memory, and behind them the sums of tokens.
  template <LevelKind kKind, int kBits>
  static SKIM_DEVICE void Multiply(const RowTile& tile, const Activations<Half>& x, char* shared) {
    using RowLevels = Levels<kKind, kBits, Place::kCache>;
    constexpr bool kSums = kKind == LevelKind::kAffine;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    const int warp_row = warp * kWarpRows;

    RowLevels levels[kRowTiles][2];
    const uint8_t* codes[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int64_t row = tile.first + warp_row + kMmaRows * r + 8 * h + g;
        if (row >= tile.run.count) row = tile.run.count - 1;  // computed once more, never stored
        levels[r][h].Prepare(tile.run, row, nullptr, h, kWarps);
        codes[r][h] = tile.run.codes + row * RowBytes(kBits, x.K);
      }
    }

    Product<Half, kRowTiles, kTokenTiles, kSums, kSumTiles> sums(warp);
    const bool idle = tile.first + warp_row >= tile.run.count && !kSums;
    const int blocks = (x.K + kSuperblockColumns - 1) / kSuperblockColumns;
    ActivationTile<Half>(shared, 0).Stage(x, threadIdx.x, kThreads);
    CommitCopies();
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      if (block + 1 < blocks) {
        ActivationTile<Half>(shared + (block + 1) % 2 * kStageBytes, block + 1).Stage(x, threadIdx.x, kThreads);
      }
      CommitCopies();
      uint32_t words[kRowTiles][2][kBits][kWords];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) LoadCodes<kBits>(codes[r][h], x.K, block, c * kWords, words[r][h]);
      }
      WaitForCopies<1>();
      __syncthreads();
      if (!idle) {
        uint32_t by_word[kWords][kRowTiles][2][kBits];
        SortByWord(words, 0, by_word);
        const ActivationTile<Half> activations(shared + block % 2 * kStageBytes, block);
        AddWords(levels, by_word, ActivationReader<Half, kTokenTiles>(activations, c * kWords, kTokens), sums);
      }
      __syncthreads();  // before the tile is filled again
    }

    auto* products = reinterpret_cast<float*>(shared);
    const ProductTile<kRows> product_tile(products);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        product_tile.Write(warp_row + kMmaRows * r, kMmaTokens * t, sums.Finish(r, t));
      }
    }
    if (g == 0) {
#pragma unroll
      for (int t = 0; t < kSumTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          products[kProductFloats + kMmaTokens * (warp * kSumTiles + t) + 2 * c + i] =
              kSums ? sums.TokenSum(t, i) : 0.0f;
        }
      }
    }
  }

  static SKIM_DEVICE void Store(const RowTile& tile, const DeviceLayer& device, int count, const char* shared,
                                Epilogue epilogue, Half* y) {
    const int row = threadIdx.x;
    if (tile.first + row >= tile.run.count) return;
    const RowOutput<Half> output(device, tile.run, tile.first + row, epilogue, y);
    const auto* products = reinterpret_cast<const float*>(shared);
    for (int token = 0; token < count; ++token) {
      output.Store(token, ProductTile<kRows>::Read(products, row, token), products[kProductFloats + token]);
    }
  }
};

static_assert(Prefill::kRows == Prefill::kThreads, "a thread stores a row");

// `kTable`: the kind of the layer's codebooks.
template <LevelKind kTable>
__global__ void __launch_bounds__(Prefill::kThreads, 2)
    PrefillKernel(const DeviceLayer device, const Half* x, int64_t M, Epilogue epilogue, Half* y) {
  const PackedLinear& weights = device.layer.weights;
  const auto token_tiles = static_cast<unsigned>(CeilDiv(M, Prefill::kTokens));
  const int64_t first = static_cast<int64_t>(blockIdx.x % token_tiles) * Prefill::kTokens;
  const int count = static_cast<int>(M - first < Prefill::kTokens ? M - first : Prefill::kTokens);
  const RowTile tile = FindTile(device.layer, blockIdx.x / token_tiles, Prefill::kRows);
  const Activations<Half> activations{x + first * weights.K, weights.column_scale.data, count,
                                      static_cast<int>(weights.K)};
  char* shared = SharedMemory();
  WithLevels<kTable>(tile.run.row_class, [&](auto kind, auto bits) {
    Prefill::Multiply<decltype(kind)::value, decltype(bits)::value>(tile, activations, shared);
  });
  __syncthreads();
  Prefill::Store(tile, device, count, shared, epilogue, y + first * weights.N);
}

inline int LaunchPrefill(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const int64_t blocks = CountTiles(layer.layer, Prefill::kRows) * CeilDiv(M, Prefill::kTokens);
  const auto kernel = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? PrefillKernel<LevelKind::kTableInt8>
                          : PrefillKernel<LevelKind::kTableFloat16>;
  return Launch(kernel, blocks, Prefill::kThreads, 2 * Prefill::kStageBytes, stream, layer, static_cast<const Half*>(x),
                M, epilogue, static_cast<Half*>(y));
}

}  // namespace skim::cuda
