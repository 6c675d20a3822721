// The product of few tokens: a block has a tile of rows, and its warps share the columns. Weights are read once, up to
// 16 bytes a thread, and go from codes to tensor core fragments in registers.
#pragma once

#include <device.cuh>

#include "activations.cuh"
#include "codes.cuh"
#include "levels.cuh"
#include "product.cuh"
#include "tile.cuh"

namespace skim::cuda {

constexpr int kDecodeWarps = 8;  // 4096 columns are on their way at once
constexpr int kDecodeThreads = 32 * kDecodeWarps;

// Words of each vector that a thread loads at once: as many as fit into 64 bytes of registers for each row, and that
// leave room for their activations.
template <typename Float>
static constexpr int LoadedWords(int row_tiles, int bits) {
  return std::is_same<Float, Half>::value && row_tiles == 1 && bits <= 4 ? 4 : 2;
}

// For up to 8 kTokenTiles tokens a block.
template <typename Float, int kRowTiles, int kTokenTiles>
struct Decode {
  static constexpr int kRows = kMmaRows * kRowTiles, kTokens = kMmaTokens * kTokenTiles;
  // What a warp leaves behind: its products, and its sums of tokens.
  static constexpr int kProductFloats = ProductTile<kRows>::Floats(kTokens), kPartFloats = kProductFloats + kTokens;

  // Bytes of shared memory: for tables and the warps' activations, then for what the warps leave.
  static int64_t SharedBytes(const Layer& layer, int64_t tokens) {
    int64_t bytes = kDecodeWarps * kPartFloats * 4;
    for (int i = 0; i < layer.run_count; ++i) {
      const int bits = ClassBits(layer.runs[i].row_class);
      const bool in_memory = bits > kMaxRegisterBits && !IsAffine(layer.runs[i].row_class);
      const int64_t needed =
          (in_memory ? kRowTiles * MemoryTableBytes(bits) : 0) +
          kDecodeWarps * LoadedWords<Float>(kRowTiles, bits) / 2 * tokens * ActivationTile<Float>::kTokenBytes;
      if (needed > bytes) bytes = needed;
    }
    return bytes;
  }

  // The products of a warp's columns, to its part of the shared memory.
  template <LevelKind kKind, int kBits>
  static SKIM_DEVICE void Multiply(const RowTile& tile, const Activations<Float>& x, char* shared) {
    using RowLevels = Levels<kKind, kBits, Place::kShared>;
    using Sums = Product<Float, kRowTiles, kTokenTiles, kKind == LevelKind::kAffine>;
    constexpr int kWords = LoadedWords<Float>(kRowTiles, kBits);
    constexpr int kStep = kWords / 2;  // superblocks that the four threads of a row load together
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;

    RowLevels levels[kRowTiles][2];
    const uint8_t* codes[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int64_t row = tile.first + kMmaRows * r + 8 * h + g;
        if (row >= tile.run.count) row = tile.run.count - 1;  // computed once more, never stored
        levels[r][h].Prepare(tile.run, row, shared + r * RowLevels::kSharedBytes, h, kDecodeWarps);
        codes[r][h] = tile.run.codes + row * RowBytes(kBits, x.K);
      }
    }
    if (RowLevels::kSharedBytes) __syncthreads();

    Sums sums;
    const int tile_bytes = x.count * ActivationTile<Float>::kTokenBytes;
    char* of_warp = shared + kRowTiles * RowLevels::kSharedBytes + warp * kStep * tile_bytes;
    const int blocks = (x.K + kSuperblockColumns - 1) / kSuperblockColumns;
#pragma unroll 1
    for (int first = warp * kStep; first < blocks; first += kDecodeWarps * kStep) {
      const int block = first + c * kWords / 8, word = c * kWords % 8;
      uint32_t words[kRowTiles][2][kBits][kWords];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) LoadCodes<kBits>(codes[r][h], x.K, block, word, words[r][h]);
      }
      // A superblock that does not exist too: its activations are 0, its levels are not.
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        ActivationTile<Float>(of_warp + i * tile_bytes, first + i).Stage(x, lane, 32);
      }
      CommitCopies();
      WaitForCopies<0>();
      __syncwarp();
      const ActivationTile<Float> activations(of_warp + (block - first) * tile_bytes, block);
#pragma unroll
      for (int i = 0; i < kWords; i += Sums::Reader::kWords) {
        uint32_t some[Sums::Reader::kWords][kRowTiles][2][kBits];
        SortByWord(words, i, some);
        AddWords(levels, some, typename Sums::Reader(activations, word + i, x.count), sums);
      }
      __syncwarp();
    }

    __syncthreads();  // the room of tables and activations is used again
    float* part = reinterpret_cast<float*>(shared) + warp * kPartFloats;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        ProductTile<kRows>(part).Write(kMmaRows * r, kMmaTokens * t, sums.Finish(r, t));
      }
      if (g == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          part[kProductFloats + kMmaTokens * t + 2 * c + i] = kKind == LevelKind::kAffine ? sums.TokenSum(t, i) : 0.0f;
        }
      }
    }
  }

  // Adds up what the warps left, always in the same order, and stores it.
  static SKIM_DEVICE void Store(const RowTile& tile, const DeviceLayer& device, int count, const char* shared,
                                Epilogue epilogue, Float* y) {
    const int row = threadIdx.x % kRows;
    if (tile.first + row >= tile.run.count) return;
    const RowOutput<Float> output(device, tile.run, tile.first + row, epilogue, y);
    for (int token = threadIdx.x / kRows; token < count; token += kDecodeThreads / kRows) {
      float product = 0, sum = 0;
#pragma unroll
      for (int i = 0; i < kDecodeWarps; ++i) {
        const float* part = reinterpret_cast<const float*>(shared) + i * kPartFloats;
        product += ProductTile<kRows>::Read(part, row, token);
        sum += part[kProductFloats + token];
      }
      output.Store(token, product, sum);
    }
  }
};

// `tokens`: of a block.
template <typename Float, LevelKind kTable, int kRowTiles, int kTokenTiles>
__global__ void __launch_bounds__(kDecodeThreads, 2 / kRowTiles)
    DecodeKernel(const DeviceLayer device, const Float* x, int64_t M, int tokens, Epilogue epilogue, Float* y) {
  using Kernel = Decode<Float, kRowTiles, kTokenTiles>;
  const PackedLinear& weights = device.layer.weights;
  const auto token_tiles = static_cast<unsigned>(CeilDiv(M, tokens));
  const int64_t first = static_cast<int64_t>(blockIdx.x % token_tiles) * tokens;
  const int count = static_cast<int>(M - first < tokens ? M - first : tokens);
  const RowTile tile = FindTile(device.layer, blockIdx.x / token_tiles, Kernel::kRows);
  const Activations<Float> activations{x + first * weights.K, weights.column_scale.data, count,
                                       static_cast<int>(weights.K)};
  char* shared = SharedMemory();
  WithLevels<kTable>(tile.run.row_class, [&](auto kind, auto bits) {
    Kernel::template Multiply<decltype(kind)::value, decltype(bits)::value>(tile, activations, shared);
  });
  __syncthreads();
  Kernel::Store(tile, device, count, shared, epilogue, y + first * weights.N);
}

// As many tokens a block as fit.
template <typename Float, int kRowTiles, int kTokenTiles>
int LaunchDecode(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  using Kernel = Decode<Float, kRowTiles, kTokenTiles>;
  int tokens = M < Kernel::kTokens ? static_cast<int>(M) : Kernel::kTokens;
  while (tokens > 1 && Kernel::SharedBytes(layer.layer, tokens) > kSharedBytes) --tokens;
  const auto kernel = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? DecodeKernel<Float, LevelKind::kTableInt8, kRowTiles, kTokenTiles>
                          : DecodeKernel<Float, LevelKind::kTableFloat16, kRowTiles, kTokenTiles>;
  return Launch(kernel, CountTiles(layer.layer, Kernel::kRows) * CeilDiv(M, tokens), kDecodeThreads,
                Kernel::SharedBytes(layer.layer, tokens), stream, layer, static_cast<const Float*>(x), M, tokens,
                epilogue, static_cast<Float*>(y));
}

}  // namespace skim::cuda
