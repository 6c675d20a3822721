// Words of a row's codes, as a thread loads them.
#pragma once

#include <device.cuh>
#include <type_traits>

#include "skim/packed.h"

namespace skim::cuda {

template <int kWords>
using CodeVector = std::conditional_t<kWords == 4, uint4, uint2>;

SKIM_DEVICE void Split(const uint4& v, uint32_t (&words)[4]) {
  words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}
SKIM_DEVICE void Split(const uint2& v, uint32_t (&words)[2]) { words[0] = v.x, words[1] = v.y; }

// Words word..word+kWords-1 of each vector of a row's superblock; those that do not exist are 0.
template <int kBits, int kWords>
SKIM_DEVICE void LoadCodes(const uint8_t* row, int K, int block, int word, uint32_t (&words)[kBits][kWords]) {
  const bool full = (block + 1) * kSuperblockColumns <= K;
  const uint8_t* from = row + block * kBits * kLanes + 4 * word;
  if (full && K % (32 * kWords) == 0) {  // rows begin at multiples of a vector's size
#pragma unroll
    for (int v = 0; v < kBits; ++v) {
      Split(LoadOnce(reinterpret_cast<const CodeVector<kWords>*>(from + v * kLanes)), words[v]);
    }
  } else {
    const int lanes = full ? kLanes : block * kSuperblockColumns < K ? TailLanes(K) : 0;
#pragma unroll
    for (int v = 0; v < kBits; ++v) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const bool exists = 4 * (word + w) < lanes;
        words[v][w] = exists ? Load(reinterpret_cast<const uint32_t*>(from + v * lanes) + w) : 0;
      }
    }
  }
}

// Some of the loaded words, [row tile][row g or g + 8][vector][word], from `first` on, as they are multiplied: word by
// word.
template <int kSome, int kRowTiles, int kBits, int kWords>
SKIM_DEVICE void SortByWord(const uint32_t (&words)[kRowTiles][2][kBits][kWords], int first,
                            uint32_t (&by_word)[kSome][kRowTiles][2][kBits]) {
#pragma unroll
  for (int w = 0; w < kSome; ++w) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int v = 0; v < kBits; ++v) by_word[w][r][h][v] = words[r][h][v][first + w];
      }
    }
  }
}

}  // namespace skim::cuda
