// Activations as integers of 16 bits in shared memory, in units of the token's own, and their products with codes and
// int8 levels on the tensor cores (docs/format.md, "Arithmetic").
#pragma once

#include <device.cuh>

#include "activations.cuh"
#include "element.cuh"
#include "levels.cuh"
#include "skim/packed.h"
#include "tile.cuh"

namespace skim::cuda {

constexpr float kLargestInteger = 32512;  // 127 * 256: the upper byte is -127..127

// A superblock of some tokens. A piece of 16 bytes has codes 2 i and 2 i + 1 of the four lanes of a word, for all
// tokens the one after the other: the upper bytes of two lanes, in turn of one code and the other, and of two more;
// then the lower bytes. Pieces that threads read together lie in different banks: of two superblocks if kApart is 2, of
// two tokens.
template <typename Float, int kApart>
class QuantizedTile {
 public:
  static constexpr int kTokenBytes = 8 * kLanes * 2;

  SKIM_DEVICE QuantizedTile(char* shared, int block) : tile_(shared), block_(block) {}

  SKIM_DEVICE uint4* Piece(int token, int pair, int word) const {
    const int piece = (8 * pair + word) ^ (token % 2 * kApart) ^ (block_ % 2);
    return reinterpret_cast<uint4*>(tile_ + token * kTokenBytes) + piece;
  }

  // The bits of the largest magnitude in a lane's piece: more than those of infinity if one is not a number.
  SKIM_DEVICE uint32_t Largest(const Activations<Float>& from, int token) const {
    float values[8];
    Read(from, token, values);
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t magnitude = FloatToBits(values[i]) & 0x7fffffff;
      if (magnitude > largest) largest = magnitude;
    }
    return largest;
  }

  // Fills a lane's piece; `inverse`: of the token's unit. Adds upper and lower bytes to `sums`.
  SKIM_DEVICE void Fill(const Activations<Float>& from, int token, float inverse, int32_t (&sums)[2]) const {
    float values[8];
    Read(from, token, values);
    uint32_t q[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      q[i] = RoundToInteger(values[i] * inverse);
      sums[0] += static_cast<int8_t>(q[i] >> 8);
      sums[1] += static_cast<uint8_t>(q[i]);
    }
    uint32_t bytes[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // two lanes of both codes
      const uint32_t first = q[2 * i] | q[4 + 2 * i] << 16, second = q[2 * i + 1] | q[4 + 2 * i + 1] << 16;
      bytes[i] = Permute(first, second, 0x7531);
      bytes[2 + i] = Permute(first, second, 0x6420);
    }
    const int lane = threadIdx.x % 32;
    *Piece(token, lane / 8, lane % 8) = {bytes[0], bytes[1], bytes[2], bytes[3]};
  }

 private:
  // The columns of a lane's piece: four of one code, then four of the other.
  SKIM_DEVICE void Read(const Activations<Float>& from, int token, float (&values)[8]) const {
    const int pair = threadIdx.x % 32 / 8, first = threadIdx.x % 8 * 4;
    const bool full = (block_ + 1) * kSuperblockColumns <= from.K;
    const int lanes = full ? kLanes : block_ * kSuperblockColumns < from.K ? TailLanes(from.K) : 0;
    const Float* row = from.x + static_cast<int64_t>(token) * from.K;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int column = block_ * kSuperblockColumns + (2 * pair + k) * lanes + first;
      float* some = values + 4 * k;
      if (full && from.K % 4 == 0) {
        const uint2 x = Load(reinterpret_cast<const uint2*>(row + column));
        Split<Float>(x, some);
        if (from.scale == nullptr) continue;
        float scales[4];
        Split<Half>(Load(reinterpret_cast<const uint2*>(from.scale + column)), scales);
#pragma unroll
        for (int i = 0; i < 4; ++i) some[i] *= scales[i];
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        some[i] = 0;
        if (first + i >= lanes || column + i >= from.K) continue;
        some[i] = LoadFloat(row + column + i);
        if (from.scale != nullptr) some[i] *= LoadFloat(from.scale + column + i);
      }
    }
  }

  template <typename Type>
  static SKIM_DEVICE void Split(const uint2& v, float* values) {
    values[0] = ToFloat(Type{static_cast<uint16_t>(v.x)}), values[1] = ToFloat(Type{static_cast<uint16_t>(v.x >> 16)});
    values[2] = ToFloat(Type{static_cast<uint16_t>(v.y)}), values[3] = ToFloat(Type{static_cast<uint16_t>(v.y >> 16)});
  }

  char* tile_;
  int block_;
};

// A token's unit, from the bits of its largest magnitude, and the inverse; of tokens that are too small for one it is
// 0.
SKIM_DEVICE float TokenUnit(uint32_t largest) { return BitsToFloat(largest) / kLargestInteger; }
SKIM_DEVICE float InverseUnit(float unit) {
  const float inverse = 1 / unit;
  return inverse > 3e38f ? 0 : inverse;
}

// A word's levels as bytes: codes of affine rows, which are not signed, or int8 entries of up to 4 bits.
template <LevelKind kKind, typename Code>
class ByteLevels {
 public:
  static constexpr bool kSigned = kKind == LevelKind::kTableInt8;

  // As Levels has it, with the codebook in shared memory.
  SKIM_DEVICE void Prepare(const char* codebook, int row) {
    if constexpr (kSigned) LoadTable<Code::kEntries, FromShared>(codebook + row * Code::kEntries, table_.words);
    if constexpr (kSigned && Code::kMemory > 0) {
#pragma unroll
      for (int i = 0; i < Code::kEntries / 4; ++i) table_.words[Code::kEntries / 2 - 1 - i] = Mirrored(table_.words[i]);
    }
  }

  // Of codes 2 pair and 2 pair + 1: in turn, of two lanes and of two more.
  SKIM_DEVICE void Decode(const uint32_t (&word)[Code::kBits], int pair, uint32_t (&bytes)[2]) const {
    if constexpr (kSigned) {
      table_.LookUp(CodeNibbles<Code>(word, 2 * pair, 2 * pair + 1), bytes);
    } else {
      const uint32_t first = CodeBytes<Code>(word, 2 * pair), second = CodeBytes<Code>(word, 2 * pair + 1);
      bytes[0] = Permute(first, second, 0x5140);
      bytes[1] = Permute(first, second, 0x7362);
    }
  }

 private:
  ByteTable<kSigned ? Code::kLevelBits : 1> table_;
};

// Sums of kRowTiles * 16 rows with kTokenTiles * 8 tokens, of the upper and the lower bytes of activations.
template <int kRowTiles, int kTokenTiles>
struct ByteProducts {
  int32_t sums[2][kRowTiles][kTokenTiles][4] = {};

  // Adds a word of codes, [row tile][row g or g + 8], with word `at` of a superblock.
  template <int kBits, typename Levels, typename Tile>
  SKIM_DEVICE void Add(const Levels (&levels)[kRowTiles][2], const uint32_t (&codes)[kRowTiles][2][kBits],
                       const Tile& tile, int at, int tokens) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t bytes[2];
          levels[r][h].Decode(codes[r][h], pair, bytes);
          a[r][h] = bytes[0], a[r][2 + h] = bytes[1];
        }
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        int token = kMmaTokens * t + threadIdx.x % 32 / 4;
        if (token >= tokens) token = tokens - 1;  // what comes of it does not matter
        const uint4 v = *tile.Piece(token, pair, at);
        const uint32_t upper[2] = {v.x, v.y}, lower[2] = {v.z, v.w};
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          MultiplyAddBytes<Levels::kSigned, true>(sums[0][r][t], a[r], upper);
          MultiplyAddBytes<Levels::kSigned, false>(sums[1][r][t], a[r], lower);
        }
      }
    }
  }
};

}  // namespace skim::cuda
