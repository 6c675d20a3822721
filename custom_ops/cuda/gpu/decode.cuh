// The product of few tokens: a block has a tile of rows, and its warps share the columns. Weights are read once, up to
// 16 bytes a thread, and go from codes to tensor core fragments in registers.
#pragma once

#include <device.cuh>
#include <type_traits>

#include "activations.cuh"
#include "codes.cuh"
#include "levels.cuh"
#include "product.cuh"
#include "tile.cuh"
#include "warp_parts.cuh"

namespace skim::cuda {

constexpr int kDecodeWarps = 8;  // 4096 columns are on their way at once
constexpr int kDecodeThreads = 32 * kDecodeWarps;

// Words of each vector that a thread loads at once: as many as fit into 64 bytes of registers for each row, or 32
// beside the largest tables, of float16 or of bytes that become bfloat16.
template <typename Element>
static constexpr int LoadedWords(int row_tiles, LevelKind kind, int bits) {
  const bool few = kind != LevelKind::kAffine && (kind == LevelKind::kTableFloat16 || !std::is_same_v<Element, Half>);
  return row_tiles == 1 && bits <= (few ? 3 : 4) ? 4 : 2;
}

// Where levels are looked up that do not fit into registers, and what their tables take. Those of 16 rows have entries
// that lie apart only where that is cheap.
static constexpr Place TablePlace(int row_tiles, int bits) {
  return row_tiles == 2 || bits <= 6 ? Place::kSharedApart : Place::kShared;
}
static constexpr int TableBytes(int row_tiles, int bits) { return EntryDistance(TablePlace(row_tiles, bits)) << bits; }

// For up to 8 kTokenTiles tokens a block.
template <typename Element, int kRowTiles, int kTokenTiles>
struct Decode {
  static constexpr int kRows = kMmaRows * kRowTiles, kTokens = kMmaTokens * kTokenTiles;

  using Parts = WarpParts<Element, kRows, kTokens, kDecodeWarps>;
  using Tile = ActivationTile<Element>;

  // Bytes of shared memory: for tables and the warps' activations, then for what the warps leave.
  static int64_t SharedBytes(const Layer& layer, int64_t tokens) {
    int64_t bytes = Parts::kBytes;
    for (int i = 0; i < layer.run_count; ++i) {
      const int bits = ClassBits(layer.runs[i].row_class);
      const LevelKind kind = KindOf(layer.runs[i].row_class, layer.weights.codebook_type);
      const bool in_memory = bits > kMaxRegisterBits && kind != LevelKind::kAffine;
      const int64_t needed =
          (in_memory ? TableBytes(kRowTiles, bits) : 0) +
          kDecodeWarps * LoadedWords<Element>(kRowTiles, kind, bits) / 2 * tokens * Tile::kTokenBytes;
      if (needed > bytes) bytes = needed;
    }
    return bytes;
  }

  // The products of a warp's columns, to its part of the shared memory.
  template <LevelKind kKind, int kBits>
  static SKIM_DEVICE void Multiply(const RowTile& tile, const Activations<Element>& x, char* shared) {
    using RowLevels = Levels<kKind, kBits, TablePlace(kRowTiles, kBits), Element>;
    using Sums = Product<kRowTiles, kTokenTiles, kKind == LevelKind::kAffine, Element>;
    constexpr int kWords = LoadedWords<Element>(kRowTiles, kKind, kBits);
    constexpr int kStep = kWords / 2;  // superblocks that the four threads of a row load together
    constexpr int kTableBytes = RowLevels::kInMemory ? TableBytes(kRowTiles, kBits) : 0;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;

    RowLevels levels[kRowTiles][2];
    const uint8_t* codes[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      int64_t rows[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows[h] = tile.first + kMmaRows * r + 8 * h + g;
        if (rows[h] >= tile.run.count) rows[h] = tile.run.count - 1;  // computed once more, never stored
        levels[r][h].Prepare(tile.run, rows[h], shared + 128 * r, h);
        codes[r][h] = tile.run.codes + rows[h] * RowBytes(kBits, x.K);
      }
      if constexpr (RowLevels::kInMemory) RowLevels::template Fill<kDecodeWarps>(tile.run, rows, shared + 128 * r);
    }
    if (RowLevels::kInMemory) __syncthreads();

    Sums sums;
    const int tile_bytes = x.count * Tile::kTokenBytes;
    char* of_warp = shared + kTableBytes + warp * kStep * tile_bytes;
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
        Tile(of_warp + i * tile_bytes, first + i).Stage(x, lane, 32);
      }
      CommitCopies();
      WaitForCopies<0>();
      __syncwarp();
      const Tile activations(of_warp + (block - first) * tile_bytes, block);
#pragma unroll
      for (int i = 0; i < kWords; i += Sums::Reader::kWords) {
        uint32_t some[Sums::Reader::kWords][kRowTiles][2][kBits];
        SortByWord(words, i, some);
        AddWords(levels, some, typename Sums::Reader(activations, word + i, x.count), sums);
      }
      __syncwarp();
    }

    __syncthreads();  // the room of tables and activations is used again
    const Parts parts(shared);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) parts.WriteProducts(kMmaRows * r, kMmaTokens * t, sums.Finish(r, t));
#pragma unroll
      for (int i = 0; g == 0 && i < 2; ++i) {
        parts.WriteTokenSum(kMmaTokens * t + 2 * c + i, kKind == LevelKind::kAffine ? sums.TokenSum(t, i) : 0.0f);
      }
    }
  }
};

// `tokens`: of a block.
template <typename Element, LevelKind kTable, int kRowTiles, int kTokenTiles>
__global__ void __launch_bounds__(kDecodeThreads, 2 / kRowTiles)
    DecodeKernel(const DeviceLayer device, const Element* x, int64_t M, int tokens, Epilogue epilogue, Element* y) {
  if constexpr (kIsSupported<Element>) {
    using Kernel = Decode<Element, kRowTiles, kTokenTiles>;
    const PackedLinear& weights = device.layer.weights;
    const BlockTile tile = FindTile(device.layer, M, Kernel::kRows, tokens);
    const Activations<Element> activations{x + tile.first_token * weights.K, weights.column_scale.data, tile.tokens,
                                           static_cast<int>(weights.K)};
    char* shared = SharedMemory();
    WithLevels<kTable>(tile.rows.run.row_class, [&](auto kind, auto bits) {
      Kernel::template Multiply<decltype(kind)::value, decltype(bits)::value>(tile.rows, activations, shared);
    });
    __syncthreads();
    typename Kernel::Parts(shared).Store(tile.rows, device, tile.tokens, epilogue, y + tile.first_token * weights.N);
  }
}

// Tokens of a block: as many as fit, at least one.
template <typename Element, int kRowTiles, int kTokenTiles>
int TokensThatFit(const Layer& layer, int64_t M) {
  using Kernel = Decode<Element, kRowTiles, kTokenTiles>;
  int tokens = M < Kernel::kTokens ? static_cast<int>(M) : Kernel::kTokens;
  while (tokens > 1 && Kernel::SharedBytes(layer, tokens) > kSharedBytes) --tokens;
  return tokens;
}

template <typename Element, int kRowTiles, int kTokenTiles>
int LaunchDecode(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  using Kernel = Decode<Element, kRowTiles, kTokenTiles>;
  const int tokens = TokensThatFit<Element, kRowTiles, kTokenTiles>(layer.layer, M);
  const auto kernel = layer.layer.weights.codebook_type == CodebookType::kInt8
                          ? DecodeKernel<Element, LevelKind::kTableInt8, kRowTiles, kTokenTiles>
                          : DecodeKernel<Element, LevelKind::kTableFloat16, kRowTiles, kTokenTiles>;
  return Launch(kernel, CountTiles(layer.layer, Kernel::kRows) * CeilDiv(M, tokens), kDecodeThreads,
                Kernel::SharedBytes(layer.layer, tokens), stream, layer, static_cast<const Element*>(x), M, tokens,
                epilogue, static_cast<Element*>(y));
}

// Blocks of 32 rows; where tables of that many rows leave too little room, of 16, as `of_16_rows` launches them.
template <typename Element>
int LaunchDecode16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream,
                   int (*of_16_rows)(const DeviceLayer&, const void*, int64_t, Epilogue, void*, void*)) {
  const int64_t wanted = M < kMmaTokens ? M : kMmaTokens;
  const bool fits = TokensThatFit<Element, 2, 2>(layer.layer, M) >= wanted;
  return (fits ? LaunchDecode<Element, 2, 2> : of_16_rows)(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
