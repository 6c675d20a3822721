// Activations in shared memory: a superblock's columns of a few tokens, in the order in which threads meet them, times
// the column scale.
#pragma once

#include <device.cuh>
#include <type_traits>

#include "element.cuh"
#include "skim/packed.h"
#include "tile.cuh"

namespace skim::cuda {

// A tile of tokens in global memory.
template <typename Float>
struct Activations {
  const Float* x;     // [count, K]
  const Half* scale;  // [K], or null: all 1
  int count;
  int K;
};

// The columns of kCodes of a superblock's codes, for each token: code j of lane i at 32 j + i. A last superblock of
// fewer lanes is spread out to them; the others, and columns that do not exist, are 0.
//
// A thread reads 16 bytes (a piece) at once. Threads that do so together are those of four pieces beside each other, or
// of two in each of two superblocks, for two tokens: pieces change places so that they lie in different banks.
template <typename Float, int kCodes = 8>
class ActivationTile {
 public:
  static constexpr int kPieceColumns = 16 / static_cast<int>(sizeof(Float));
  static constexpr int kPieces = kCodes * kLanes / kPieceColumns;
  static constexpr int kTokenBytes = kCodes * kLanes * static_cast<int>(sizeof(Float));

  SKIM_DEVICE ActivationTile(char* shared, int block, int first_code = 0)
      : tile_(shared), block_(block), first_code_(first_code) {}

  SKIM_DEVICE char* Piece(int token, int piece) const {
    return tile_ + token * kTokenBytes + 16 * (piece ^ (token % 2 * 4) ^ (block_ % 2));
  }

  // Fills the tile by `threads` threads of which this is `thread`; it is there after WaitForCopies and a barrier.
  SKIM_DEVICE void Stage(const Activations<Float>& from, int thread, int threads) const {
    const bool whole = (block_ + 1) * kSuperblockColumns <= from.K && from.K % kPieceColumns == 0;
#pragma unroll 1
    for (int i = thread; i < from.count * kPieces; i += threads) {
      const int token = i / kPieces, piece = i % kPieces;
      const int column = block_ * kSuperblockColumns + first_code_ * kLanes + piece * kPieceColumns;
      const Float* row = from.x + static_cast<int64_t>(token) * from.K;
      if (!whole) {
        StageColumns(from, row, token, piece);
      } else if (from.scale == nullptr) {
        CopyAsync(Piece(token, piece), row + column);
      } else {
        StageScaled(row + column, from.scale + column, Piece(token, piece));
      }
    }
  }

 private:
  SKIM_DEVICE void StageColumns(const Activations<Float>& from, const Float* row, int token, int piece) const {
    const int first = block_ * kSuperblockColumns;
    const int lanes = first + kSuperblockColumns <= from.K ? kLanes : TailLanes(from.K);
#pragma unroll 1
    for (int i = 0; i < kPieceColumns; ++i) {
      const int j = first_code_ + (piece * kPieceColumns + i) / kLanes, lane = (piece * kPieceColumns + i) % kLanes;
      const int column = first + j * lanes + lane;
      float value = 0;
      if (lane < lanes && column < from.K) {
        value = LoadFloat(row + column);
        if (from.scale != nullptr) value *= LoadFloat(from.scale + column);
      }
      StoreFloat(reinterpret_cast<Float*>(Piece(token, piece)) + i, value);
    }
  }

  template <typename Element>
  static SKIM_DEVICE void StageScaled(const Element* x, const Half* scale, char* to) {
    using Two = ElementPair<Element>;
    const uint4 v = Load(reinterpret_cast<const uint4*>(x)), s = Load(reinterpret_cast<const uint4*>(scale));
    *reinterpret_cast<uint4*>(to) = {Two::Scaled(v.x, s.x), Two::Scaled(v.y, s.y), Two::Scaled(v.z, s.z),
                                     Two::Scaled(v.w, s.w)};
  }

  static SKIM_DEVICE void StageScaled(const float* x, const Half* scale, char* to) {
    const float4 v = Load(reinterpret_cast<const float4*>(x));
    *reinterpret_cast<float4*>(to) = {v.x * LoadFloat(scale), v.y * LoadFloat(scale + 1), v.z * LoadFloat(scale + 2),
                                      v.w * LoadFloat(scale + 3)};
  }

  char* tile_;
  int block_, first_code_;
};

// What a thread of a tensor core reads of a tile: the fragments of two words of codes beside each other, for one token
// of eight. What it reads for tokens that do not exist does not matter, as no other token depends on it; it only must
// stay within the tile.
template <int kTokenTiles>
class FragmentReader {
 public:
  static constexpr int kWords = 2;

  // `tokens`: that the tile has room for.
  template <typename Element, int kCodes>
  SKIM_DEVICE FragmentReader(const ActivationTile<Element, kCodes>& tile, int word, int tokens) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      int token = kMmaTokens * t + threadIdx.x % 32 / 4;
      if (token >= tokens) token = tokens - 1;
      even_[t] = tile.Piece(token, word / 2);
      odd_[t] = tile.Piece(token, word / 2 + kPiecesOfCode) - 16 * kPiecesOfCode;
    }
  }

  // The fragments of the tile's code j, for the tokens from 8 tile on: of both words, or of `word`.
  SKIM_DEVICE void Fragments(int tile, int j, int, uint32_t (&b)[2][2]) const {
    const uint4 v = *reinterpret_cast<const uint4*>(Code(tile, j));
    b[0][0] = v.x, b[0][1] = v.y, b[1][0] = v.z, b[1][1] = v.w;
  }
  SKIM_DEVICE void Fragments(int tile, int j, int word, uint32_t (&b)[1][2]) const {
    const uint2 v = reinterpret_cast<const uint2*>(Code(tile, j))[word];
    b[0][0] = v.x, b[0][1] = v.y;
  }

 private:
  static constexpr int kPiecesOfCode = kLanes / ActivationTile<Half>::kPieceColumns;

  SKIM_DEVICE const char* Code(int tile, int j) const { return (j % 2 ? odd_ : even_)[tile] + 16 * kPiecesOfCode * j; }

  const char *even_[kTokenTiles], *odd_[kTokenTiles];  // of codes 0, 2, .. and 1, 3, ..
};

}  // namespace skim::cuda
