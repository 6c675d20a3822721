// The columns of a row as the kernels have them, of activations and of decoded levels: its last superblock is padded.
//
// A last superblock of 8 or 16 lanes, 64 or 128 columns, is dense: it is read as it is. One of another size is spread
// out to more lanes, of which those that do not exist have activations of 0. The order within 64 columns is up to the
// instruction set.
//
// Every function is `static`: the files of the kernels are compiled for different CPUs, and must not share code.
#pragma once

#include <cstdint>

#include "inline.h"
#include "skim/kernels.h"

namespace skim {

static constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Superblocks of a row, the last, shorter one included.
static constexpr int64_t Superblocks(int64_t K) { return CeilDiv(K, kSuperblockColumns); }

static constexpr bool TailIsDense(int lanes) { return lanes == 8 || lanes == 16; }

// Lanes that fewer ones are spread out to; more of them are spread out to those of a full superblock.
#ifdef __aarch64__
static constexpr int kSpreadLanes = 16;
#else
static constexpr int kSpreadLanes = kLanes;
#endif

// Lanes of a last superblock with those it is spread out to. If it has none, the last one is full.
static constexpr int SpreadLanes(int lanes) {
  if (TailIsDense(lanes)) return lanes;
  return lanes > 0 && lanes < kSpreadLanes ? kSpreadLanes : kLanes;
}

// Columns, those that do not exist included, of the superblocks before `block`; a multiple of 64.
static constexpr int64_t ColumnsBefore(int64_t K, int64_t block) {
  const int lanes = SpreadLanes(TailLanes(K));
  const bool short_tail = lanes != kLanes && block == Superblocks(K);
  return short_tail ? (block - 1) * kSuperblockColumns + 8 * lanes : block * kSuperblockColumns;
}

static constexpr int64_t PaddedColumns(int64_t K) { return ColumnsBefore(K, Superblocks(K)); }

// A prepared token of exact arithmetic: its floats, then the sum of all of them, which affine rows need for their
// offset, and padding.
static constexpr int64_t ExactFloats(int64_t K) { return PaddedColumns(K) + kAlignment / 4; }
static constexpr int64_t ExactBytes(int64_t K) { return ExactFloats(K) * 4; }

// Calls body(first column, columns that exist, columns) for each stretch of a row: all full superblocks, then a last
// one that is not spread out, or each of the eight codes of one that is.
template <typename Body>
static SKIM_INLINE void EachStretch(int64_t K, Body&& body) {
  const int64_t tail = K - K % kSuperblockColumns;
  if (tail > 0) body(int64_t{0}, tail, tail);
  if (tail == K) return;
  const int lanes = TailLanes(K);
  if (SpreadLanes(lanes) == lanes) {
    body(tail, K - tail, int64_t{8 * lanes});
    return;
  }
  for (int j = 0; j < 8; ++j) {
    const int64_t first = tail + j * lanes, left = K - first;
    body(first, left < 0 ? 0 : Min(left, lanes), int64_t{SpreadLanes(lanes)});
  }
}

// Calls body(first superblock, superblocks' end, columns before, columns) for the pieces of `blocks` superblocks that a
// row is decoded in.
template <typename Body>
static SKIM_INLINE void EachPiece(int64_t K, int64_t blocks, Body&& body) {
  const int64_t superblocks = Superblocks(K);
  for (int64_t block = 0; block < superblocks; block += blocks) {
    const int64_t end = Min(block + blocks, superblocks), first = ColumnsBefore(K, block);
    body(block, end, first, ColumnsBefore(K, end) - first);
  }
}

}  // namespace skim
