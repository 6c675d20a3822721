// Activations in shared memory as a warpgroup's multiplications read them: 16 lanes of a superblock for each token,
// times the column scale.
#pragma once

#include <device.cuh>
#include <warpgroup.cuh>

#include "activations.cuh"
#include "element.cuh"
#include "skim/packed.h"

namespace skim::cuda {

constexpr int kWarpgroup = 128;     // threads
constexpr int kWarpgroupRows = 64;  // of one multiplication

// A panel holds 64 columns of each token: 128 bytes.
constexpr int kPanelColumns = 64;
constexpr int kPanelAlignment = 1024;  // bytes: of eight tokens

// Where the 16 bytes `chunk` (of 0..7) of a token lie in a panel. Chunks of one number of eight tokens lie in different
// banks (the swizzle of 128 bytes).
SKIM_DEVICE int PanelOffset(int token, int chunk) { return token * 128 + 16 * (chunk ^ token % 8); }

// The first 16 columns of a panel as an operand (matrix descriptor): the address, an offset that is not used here, the
// distance from eight tokens to the next eight, and the swizzle. The next 16 columns are kNextColumns more.
constexpr uint64_t kNextColumns = 16 * 2 / 16;
SKIM_DEVICE uint64_t PanelOperand(const char* panel) {
  constexpr uint64_t kUnused = 1, kStride = kPanelAlignment / 16, kSwizzle128 = 1;
  return (SharedAddress(panel) & 0x3ffff) >> 4 | kUnused << 16 | kStride << 32 | kSwizzle128 << 62;
}

constexpr int kStageLanes = 16;                           // words of four threads
constexpr int kStageCodes = 8;                            // of each lane
constexpr int kPanelCodes = kPanelColumns / kStageLanes;  // of a stage's codes

static constexpr int CountStages(int K) {
  return 2 * (K / kSuperblockColumns) + static_cast<int>(CeilDiv(TailLanes(K), kStageLanes));
}

// The panels of a stage of so many tokens.
template <int kTokens>
struct StagePanels {
  static constexpr int kPanelBytes = kTokens * kPanelColumns * 2;
  static constexpr int kBytes = kStageCodes / kPanelCodes * kPanelBytes;

  // The part of a stage for code j.
  static SKIM_DEVICE uint64_t CodeOperand(uint64_t stage, int j) {
    return stage + j / kPanelCodes * (kPanelBytes / 16) + j % kPanelCodes * kNextColumns;
  }
};

// A warpgroup that fills stages of kTokens one after the other. Each thread does one code for some of the tokens,
// kBatch of which are on their way at once. With kSums it adds up what it writes, in shared memory: it has few
// registers.
//
// Thread c of a row has lanes 4 c to 4 c + 3, so that of a code's 16 columns 4 c and 4 c + 1 are multiplied as numbers
// 2 c and 2 c + 1, and 4 c + 2, 4 c + 3 as 2 c + 8, 2 c + 9: pairs of columns are stored in the order 0 2 4 6 1 3 5 7.
template <typename Element, int kTokens, int kBatch, bool kSums>
class PanelFiller {
 public:
  static constexpr int kSumBytes = kTokens * kStageCodes * 4;

  // `sums`: room for kSumBytes. A lane has code lane % 4 + 4 (warp % 2): with eight lanes beside each other 16 bytes go
  // to all banks.
  SKIM_DEVICE PanelFiller(const Activations<Element>& from, int thread, float* sums)
      : from_(from),
        code_(thread % 4 + kPanelCodes * (thread / 32 % 2)),
        token_(thread % 32 / 4 + 8 * (thread / 64)),
        to_(code_ / kPanelCodes * StagePanels<kTokens>::kPanelBytes + PanelOffset(token_, code_ % kPanelCodes * 2)),
        sums_(sums + token_ * kStageCodes + code_) {
#pragma unroll
    for (int i = 0; kSums && i < kThreadTokens; ++i) sums_[i * kDistance * kStageCodes] = 0;
  }

  // Fills stage `number`; calls wait() before it writes.
  template <typename Wait>
  SKIM_DEVICE void Fill(char* stage, int number, Wait wait) const {
    const int block = number / 2, lane = number % 2 * kStageLanes;
    const bool full = (block + 1) * kSuperblockColumns <= from_.K;
    if (full && from_.K % 8 == 0) {
      Copy(stage, block * kSuperblockColumns + code_ * kLanes + lane, wait);
    } else {
      wait();
      CopyColumns(stage, block * kSuperblockColumns, full ? kLanes : TailLanes(from_.K), lane);
    }
  }

  // The sum of a token that a warpgroup has added up; 0 without kSums.
  static SKIM_DEVICE float Sum(const float* sums, int token) {
    float sum = 0;
#pragma unroll
    for (int code = 0; kSums && code < kStageCodes; ++code) sum += sums[token * kStageCodes + code];
    return sum;
  }

 private:
  using Two = ElementPair<Element>;
  static constexpr int kDistance = kWarpgroup / kStageCodes;  // of a thread's tokens
  static constexpr int kThreadTokens = kTokens / kDistance;
  static_assert(kThreadTokens % kBatch == 0);

  // A column of a thread's token i. What is multiplied for tokens that do not exist does not matter: the last one once
  // more.
  SKIM_DEVICE const Element* At(int i, int column) const {
    const int token = token_ + i * kDistance < from_.count ? token_ + i * kDistance : from_.count - 1;
    return from_.x + (static_cast<uint32_t>(token) * from_.K + column);
  }

  SKIM_DEVICE char* Chunk(char* stage, int i, int chunk) const {
    return stage + (to_ ^ 16 * chunk) + i * kDistance * (kPanelColumns * 2);
  }

  SKIM_DEVICE void Add(int i, float sum) const {
    if (kSums) sums_[i * kDistance * kStageCodes] += sum;
  }

  template <typename Wait>
  SKIM_DEVICE void Copy(char* stage, int column, Wait wait) const {
    constexpr uint32_t kOnes = ElementPair<Half>::kOnes;
    uint4 scale[2] = {{kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes, kOnes, kOnes}};
    if (from_.scale != nullptr) {
#pragma unroll
      for (int p = 0; p < 2; ++p) scale[p] = Load(reinterpret_cast<const uint4*>(from_.scale + column) + p);
    }
#pragma unroll 1
    for (int first = 0; first < kThreadTokens; first += kBatch) {
      uint4 x[kBatch][2];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
#pragma unroll
        for (int p = 0; p < 2; ++p) x[i][p] = Load(reinterpret_cast<const uint4*>(At(first + i, column)) + p);
      }
      if (first == 0) wait();
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint4 a = Scaled(x[i][0], scale[0]), b = Scaled(x[i][1], scale[1]);
        *reinterpret_cast<uint4*>(Chunk(stage, first + i, 0)) = {a.x, a.z, b.x, b.z};
        *reinterpret_cast<uint4*>(Chunk(stage, first + i, 1)) = {a.y, a.w, b.y, b.w};
        Add(first + i, Sum(a) + Sum(b));
      }
    }
  }

  // Columns of a superblock that has so many lanes, one by one; those that do not exist are 0.
  SKIM_DEVICE void CopyColumns(char* stage, int first, int lanes, int first_lane) const {
#pragma unroll 1
    for (int i = 0; i < kThreadTokens; ++i) {
      float sum = 0;
#pragma unroll 1
      for (int k = 0; k < kStageLanes; ++k) {
        const int lane = first_lane + k, column = first + code_ * lanes + lane;
        float value = 0;
        if (lane < lanes && column < from_.K) {
          value = LoadFloat(At(i, column));
          if (from_.scale != nullptr) value *= LoadFloat(from_.scale + column);
        }
        Element* to = reinterpret_cast<Element*>(Chunk(stage, i, k / 2 % 2)) + (k / 4 * 2 + k % 2);
        StoreFloat(to, value);
        sum += ReadBack(to);
      }
      Add(i, sum);
    }
  }

  static SKIM_DEVICE uint4 Scaled(const uint4& x, const uint4& scale) {
    return {Two::Scaled(x.x, scale.x), Two::Scaled(x.y, scale.y), Two::Scaled(x.z, scale.z), Two::Scaled(x.w, scale.w)};
  }

  static SKIM_DEVICE float Sum(const uint4& x) {
    return (Two::Sum(x.x) + Two::Sum(x.y)) + (Two::Sum(x.z) + Two::Sum(x.w));
  }

  const Activations<Element>& from_;
  int code_, token_;
  int to_;       // of the first token's chunk 0, in a stage
  float* sums_;  // of the first token
};

}  // namespace skim::cuda
