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

// A place among the tiles of a layer's runs, each of which has so many.
class TileCursor {
 public:
  SKIM_DEVICE TileCursor(const int (&tiles)[kClasses], int runs, int tile) : tiles_(tiles), runs_(runs), tile_(tile) {
    FindRun();
  }

  SKIM_DEVICE bool AtEnd() const { return run_ == runs_; }
  SKIM_DEVICE int Run() const { return run_; }
  SKIM_DEVICE int Tile() const { return tile_; }  // of the run

  SKIM_DEVICE void Skip(int tiles) {
    tile_ += tiles;
    FindRun();
  }

 private:
  SKIM_DEVICE void FindRun() {
#pragma unroll 1
    for (; run_ < runs_ && tile_ >= tiles_[run_]; ++run_) tile_ -= tiles_[run_];
  }

  const int (&tiles_)[kClasses];
  int runs_, run_ = 0, tile_;
};

// The original number of a row of a run.
SKIM_DEVICE int OriginalRow(const Layer& layer, const RowRun& run, int row) {
  const int64_t stored = run.first + row;
  return layer.destination ? Load(layer.destination + stored) : static_cast<int>(stored);
}

// Where a row's products go, and what is done to them. What that takes is loaded when this is made and looked at when
// it is used: no load depends on another, and nothing waits before that.
template <typename Float>
class RowOutput {
 public:
  // `n`: the row's original number; `y`: of the tile's first token.
  SKIM_DEVICE RowOutput(const DeviceLayer& device, const RowRun& run, int row, int n, Epilogue epilogue, Float* y)
      : kind_(KindOf(run.row_class, device.layer.weights.codebook_type)),
        scale_(LoadStoredScale(kind_, run, row)),
        unit_(device.column_unit),
        has_bias_(device.layer.weights.bias.size != 0),
        bias_(Load(has_bias_ ? device.layer.weights.bias.data + n : reinterpret_cast<const float*>(run.codes))),
        N_(device.layer.weights.N),
        epilogue_(epilogue),
        y_(y + n) {}

  // `product`: of a token with the row's levels, in units of `token_unit`; `sum`: of the token's x.
  SKIM_DEVICE void Store(int token, float product, float sum, float token_unit = 1) const {
    const RowScale scale = ToRowScale(kind_, scale_, unit_);
    float value = product * (scale.scale * token_unit) + (scale.offset * sum + (has_bias_ ? bias_ : 0.0f));
    Float* y = y_ + token * N_;
    if (epilogue_ == Epilogue::kSilu) value /= 1.0f + expf(-value);
    if (epilogue_ == Epilogue::kMultiply) value *= ReadBack(y);
    StoreFloat(y, value);
  }

 private:
  LevelKind kind_;
  StoredScale scale_;
  float unit_;
  bool has_bias_;
  float bias_;  // anything if there is none
  int64_t N_;
  Epilogue epilogue_;
  Float* y_;
};

// A tile of products in shared memory, float or int32_t: [tokens][kRows], so that a warp stores to rows beside each
// other. Its stride spreads what a warp writes of a tensor core's result over all banks.
template <int kRows, typename Number = float>
class ProductTile {
 public:
  static constexpr int kStride = kRows + 4;
  static constexpr int Floats(int tokens) { return tokens * kStride; }

  SKIM_DEVICE explicit ProductTile(Number* shared) : tile_(shared) {}

  // A thread's part of a tensor core's result (see MultiplyAdd) whose first row and token these are; of tokens before
  // `end`.
  SKIM_DEVICE void Write(int row, int token, const Number (&d)[4], int end = INT32_MAX) const {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int of = token + 2 * c + i % 2;
      if (of < end) tile_[of * kStride + row + g + i / 2 * 8] = d[i];
    }
  }

  static SKIM_DEVICE Number Read(const Number* tile, int row, int token) { return tile[token * kStride + row]; }

 private:
  Number* tile_;
};

}  // namespace skim::cuda
