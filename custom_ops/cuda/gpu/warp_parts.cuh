// Where the warps of a block share the columns: what each leaves in shared memory, and how it is added up and stored.
#pragma once

#include <device.cuh>

#include "tile.cuh"

namespace skim::cuda {

// Of some tokens with kRows rows, a multiple of a tensor core's. There is room for the products of several tiles, so
// that they can be stored while the next ones come. A product is kProducts numbers, and each warp also leaves kFacts
// about each token's activations in its columns, which are the same for all tiles.
template <typename Number, int kRows, int kWarps, int kProducts = 1, int kFacts = 1>
class WarpParts {
 public:
  static constexpr int Bytes(int tokens, int tiles) { return 4 * (kWarps * kFacts * tokens + tiles * Numbers(tokens)); }

  // `tile`: which of them.
  SKIM_DEVICE WarpParts(char* shared, int tokens, int tile)
      : facts_(reinterpret_cast<Number*>(shared)),
        products_(facts_ + kWarps * kFacts * tokens + tile * Numbers(tokens)),
        tokens_(tokens) {}

  // A thread's part of its warp's products (see MultiplyAdd).
  SKIM_DEVICE void WriteProducts(int row, int token, const Number (&d)[4], int which = 0) const {
    Tile(Products(threadIdx.x / 32, which)).Write(row, token, d, tokens_);
  }

  // A fact about a token. The first one is the sum of its activations.
  SKIM_DEVICE void WriteFact(int token, Number fact, int which = 0) const {
    if (token < tokens_) facts_[(threadIdx.x / 32 * kFacts + which) * tokens_ + token] = fact;
  }

  // What a warp has written.
  SKIM_DEVICE Number Fact(int warp, int token, int which) const {
    return facts_[(warp * kFacts + which) * tokens_ + token];
  }

  // The row of a tile that this thread stores.
  static SKIM_DEVICE int Row() { return threadIdx.x % kRows; }

  // Adds up the parts of all warps, always in the same order, and calls store(token, products, sums) for what this
  // thread stores of its row; sums are kProducts facts. `with_sums`: whether these have been written; otherwise they
  // are 0. From turn to turn other warps have the work.
  template <typename Body>
  SKIM_DEVICE void Store(bool with_sums, unsigned turn, Body&& store) const {
    constexpr int kTogether = 32 * kWarps / kRows;
    int token = (threadIdx.x + 32 * turn) % (32 * kWarps) / kRows;
    for (; token < tokens_; token += kTogether) {
      Number products[kProducts] = {}, sums[kProducts] = {};
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
#pragma unroll
        for (int k = 0; k < kProducts; ++k) {
          products[k] += Tile::Read(Products(i, k), Row(), token);
          if (with_sums) sums[k] += Fact(i, token, k);
        }
      }
      store(token, products, sums);
    }
  }

 private:
  using Tile = ProductTile<kRows, Number>;

  static constexpr int Numbers(int tokens) { return kWarps * kProducts * Tile::Floats(tokens); }

  SKIM_DEVICE Number* Products(int warp, int which) const {
    return products_ + (warp * kProducts + which) * Tile::Floats(tokens_);
  }

  Number *facts_, *products_;
  int tokens_;
};

}  // namespace skim::cuda
