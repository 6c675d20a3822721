// Codes times activations, summed up in the registers of tensor cores.
#pragma once

#include <device.cuh>

#include "activations.cuh"
#include "element.cuh"
#include "levels.cuh"
#include "tile.cuh"

namespace skim::cuda {

// Sums of kRowTiles * 16 rows with kTokenTiles * 8 tokens, in the fragments of a warp's tensor core.
template <int kRowTiles, int kTokenTiles, typename Element = Half>
class Product {
 public:
  using Reader = FragmentReader<kTokenTiles>;

  // Adds the products of code j of some of the reader's words, those from `word` on, as fragments `a`, with its
  // columns.
  template <int kSome>
  SKIM_DEVICE void Add(const uint32_t (&a)[kSome][kRowTiles][4], const Reader& reader, int j, int word) {
    using Two = ElementPair<Element>;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      uint32_t b[kSome][2];
      reader.Fragments(t, j, word, b);
#pragma unroll
      for (int w = 0; w < kSome; ++w) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) Two::MultiplyAdd(sums_[w % kChains][r][t], a[w][r], b[w]);
      }
    }
  }

  // The sums as MultiplyAdd leaves them.
  SKIM_DEVICE const float (&Finish(int row_tile, int token_tile))[4] {
    if (kChains == 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[0][row_tile][token_tile][i] += sums_[1 % kChains][row_tile][token_tile][i];
    }
    return sums_[0][row_tile][token_tile];
  }

 private:
  // With a single sum every instruction would wait for the one before it.
  static constexpr int kChains = kRowTiles * kTokenTiles == 1 ? 2 : 1;

  float sums_[kChains][kRowTiles][kTokenTiles][4] = {};
};

// Sums of kTokenTiles * 8 tokens themselves, as products with ones.
template <int kTokenTiles, typename Element = Half>
class TokenSums {
 public:
  // Adds all columns of a superblock.
  SKIM_DEVICE void Add(const ActivationTile<Element>& tile, int tokens) {
    using Two = ElementPair<Element>;
    using Reader = FragmentReader<kTokenTiles>;
    const uint32_t ones[4] = {Two::kOnes, Two::kOnes, Two::kOnes, Two::kOnes};
    const Reader reader(tile, Reader::kWords * (threadIdx.x % 4), tokens);
#pragma unroll 2
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        uint32_t b[Reader::kWords][2];
        reader.Fragments(t, j, 0, b);
#pragma unroll
        for (int w = 0; w < Reader::kWords; ++w) Two::MultiplyAdd(sums_[t], ones, b[w]);
      }
    }
  }

  // Of token 2 c + i of a tile.
  SKIM_DEVICE float Sum(int tile, int i) const { return sums_[tile][i]; }

 private:
  float sums_[kTokenTiles][4] = {};
};

// Adds kSome words of codes, [word][row tile][row g or g + 8], times what `reader` reads for its words from `first` on.
template <int kSome, int kRowTiles, int kBits, typename Levels, typename Reader, typename Product>
SKIM_DEVICE void AddSomeWords(const Levels (&levels)[kRowTiles][2], const uint32_t (&codes)[kSome][kRowTiles][2][kBits],
                              const Reader& reader, int first, Product& product) {
  constexpr int kCodes = Levels::kTogether;
#pragma unroll
  for (int i = 0; i < 8 / kCodes; ++i) {
    // No lookups of the next codes yet: the registers are needed for those of these.
    if (Levels::kInOrder || kRowTiles == 2) __syncwarp();
    uint32_t a[kCodes][kSome][kRowTiles][4];
#pragma unroll
    for (int w = 0; w < kSome; ++w) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t halves[kCodes][2];
          levels[r][h].Decode(codes[w][r][h], i, halves);
#pragma unroll
          for (int k = 0; k < kCodes; ++k) a[k][w][r][h] = halves[k][0], a[k][w][r][2 + h] = halves[k][1];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kCodes; ++k) {
      product.Add(a[k], reader, CodeOfStep(kBits, kCodes, i, k), first);
    }
  }
}

template <int kRowTiles, int kBits>
SKIM_DEVICE void Copy(const uint32_t (&from)[kRowTiles][2][kBits], uint32_t (&to)[kRowTiles][2][kBits]) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int v = 0; v < kBits; ++v) to[r][h][v] = from[r][h][v];
    }
  }
}

// Adds the reader's words.
template <int kWords, int kRowTiles, int kBits, typename Levels, typename Reader, typename Product>
SKIM_DEVICE void AddWords(const Levels (&levels)[kRowTiles][2], const uint32_t (&codes)[kWords][kRowTiles][2][kBits],
                          const Reader& reader, Product& product) {
  if constexpr (kWords == 1 || !Levels::kInOrder) {
    AddSomeWords(levels, codes, reader, 0, product);
  } else {
    // One after the other, and not unrolled.
    static_assert(kWords == 2);
    uint32_t word[1][kRowTiles][2][kBits];
    Copy(codes[0], word[0]);
#pragma unroll 1
    for (int w = 0; w < kWords; ++w) {
      AddSomeWords(levels, word, reader, w, product);
      Copy(codes[1], word[0]);
    }
  }
}

}  // namespace skim::cuda
