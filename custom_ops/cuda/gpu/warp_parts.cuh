// Where the warps of a block share the columns: what each leaves in shared memory, and how it is added up and stored.
#pragma once

#include <device.cuh>

#include "tile.cuh"

namespace skim::cuda {

// Of some tokens with kRows rows, a multiple of a tensor core's. There is room for the products of several tiles, so
// that they can be stored while the next ones come.
template <typename Float, int kRows, int kWarps>
class WarpParts {
 public:
  static constexpr int Bytes(int tokens, int tiles) { return kWarps * (tokens + tiles * Tile::Floats(tokens)) * 4; }

  // `tile`: which of them.
  SKIM_DEVICE WarpParts(char* shared, int tokens, int tile)
      : sums_(reinterpret_cast<float*>(shared)),
        products_(sums_ + kWarps * (tokens + tile * Tile::Floats(tokens))),
        tokens_(tokens) {}

  // A thread's part of its warp's products (see MultiplyAdd).
  SKIM_DEVICE void WriteProducts(int row, int token, const float (&d)[4]) const {
    Tile(products_ + threadIdx.x / 32 * Tile::Floats(tokens_)).Write(row, token, d, tokens_);
  }

  // The sum of a token's activations in the warp's columns, which is the same for all tiles.
  SKIM_DEVICE void WriteTokenSum(int token, float sum) const {
    if (token < tokens_) sums_[threadIdx.x / 32 * tokens_ + token] = sum;
  }

  // The row of a tile that this thread stores.
  static SKIM_DEVICE int Row() { return threadIdx.x % kRows; }

  // Adds up the parts of all warps, always in the same order, and stores the thread's row. `with_sums`: whether those
  // of tokens have been written. From turn to turn other warps have the work.
  SKIM_DEVICE void Store(const RowOutput<Float>& output, bool with_sums, unsigned turn) const {
    constexpr int kTogether = 32 * kWarps / kRows;
    int token = (threadIdx.x + 32 * turn) % (32 * kWarps) / kRows;
    for (; token < tokens_; token += kTogether) {
      float product = 0, sum = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        product += Tile::Read(products_ + i * Tile::Floats(tokens_), Row(), token);
        if (with_sums) sum += sums_[i * tokens_ + token];
      }
      output.Store(token, product, sum);
    }
  }

 private:
  using Tile = ProductTile<kRows>;

  float *sums_, *products_;
  int tokens_;
};

}  // namespace skim::cuda
