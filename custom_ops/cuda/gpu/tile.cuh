// How a product's rows are cut among blocks, and how a block's tile of it is finished and stored.
#pragma once

#include <device.cuh>

#include "element.cuh"
#include "levels.cuh"
#include "skim/cuda.h"

namespace skim::cuda {

constexpr int kSharedBytes = 64 * 1024;  // that a block may have on every GPU since Turing

constexpr int kMmaRows = 16, kMmaTokens = 8;  // of one tensor core instruction

static constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of one class.
struct RowTile {
  const RowRun& run;
  int first;  // in the run
};

// Tiles of `rows` rows that a layer is cut into; the last of each class may have fewer.
static inline int64_t CountTiles(const Layer& layer, int rows) {
  int64_t tiles = 0;
  for (int i = 0; i < layer.run_count; ++i) tiles += CeilDiv(layer.runs[i].count, rows);
  return tiles;
}

// What a block computes: some rows of one class, for some tokens.
struct BlockTile {
  RowTile rows;
  int64_t first_token;
  int tokens;
};

// Tile `row_tile` of a layer's rows and `token_tile` of M tokens, where each has at most so many rows and tokens.
SKIM_DEVICE BlockTile TileAt(const Layer& layer, int64_t M, int rows, int tokens, int row_tile, int64_t token_tile) {
  const int64_t first = token_tile * tokens;
  const RowRun* run = layer.runs;
  for (int tiles; row_tile >= (tiles = static_cast<int>(CeilDiv(run->count, rows))); ++run) row_tile -= tiles;
  return {{*run, row_tile * rows}, first, static_cast<int>(M - first < tokens ? M - first : tokens)};
}

// The tile of this block. Blocks beside each other have the same rows, so that weights come from memory once.
SKIM_DEVICE BlockTile FindTile(const Layer& layer, int64_t M, int rows, int tokens) {
  const auto token_tiles = static_cast<unsigned>(CeilDiv(M, tokens));
  return TileAt(layer, M, rows, tokens, static_cast<int>(blockIdx.x / token_tiles), blockIdx.x % token_tiles);
}

// Where a row's products go, and what is done to them.
template <typename Float>
class RowOutput {
 public:
  // `y`: of the tile's first token.
  SKIM_DEVICE RowOutput(const DeviceLayer& layer, const RowRun& run, int row, Epilogue epilogue, Float* y)
      : scale_(LoadRowScale(KindOf(run.row_class, layer.layer.weights.codebook_type), run, row, layer.column_unit)),
        N_(layer.layer.weights.N),
        epilogue_(epilogue) {
    const int64_t stored = run.first + row;
    const int64_t n = layer.layer.destination ? Load(layer.layer.destination + stored) : stored;
    bias_ = layer.layer.weights.bias.size ? Load(layer.layer.weights.bias.data + n) : 0.0f;
    y_ = y + n;
  }

  // `product`: of a token with the row's levels, `sum`: of the token's x.
  SKIM_DEVICE void Store(int token, float product, float sum) const {
    float value = product * scale_.scale + (scale_.offset * sum + bias_);
    Float* y = y_ + token * N_;
    if (epilogue_ == Epilogue::kSilu) value /= 1.0f + expf(-value);
    if (epilogue_ == Epilogue::kMultiply) value *= ReadBack(y);
    StoreFloat(y, value);
  }

 private:
  RowScale scale_;
  float bias_;
  int64_t N_;
  Epilogue epilogue_;
  Float* y_;
};

// A tile of products in shared memory: [tokens][kRows], so that a warp stores to rows beside each other. Its stride
// spreads what a warp writes of a tensor core's result over all banks.
template <int kRows>
class ProductTile {
 public:
  static constexpr int kStride = kRows + 4;
  static constexpr int Floats(int tokens) { return tokens * kStride; }

  SKIM_DEVICE explicit ProductTile(float* shared) : tile_(shared) {}

  // A thread's part of a tensor core's result (see MultiplyAdd) whose first row and token these are.
  SKIM_DEVICE void Write(int row, int token, const float (&d)[4]) const {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) tile_[(token + 2 * c + i % 2) * kStride + row + g + i / 2 * 8] = d[i];
  }

  static SKIM_DEVICE float Read(const float* tile, int row, int token) { return tile[token * kStride + row]; }

 private:
  float* tile_;
};

}  // namespace skim::cuda
