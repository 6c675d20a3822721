// The order in which the kernels of all instruction sets have the columns of a row: how its last superblock is padded.
//
// Columns that are contiguous stay so: those of full superblocks, and of a last one that the kernels read as it is. Any
// other last superblock is spread out: each of its eight codes gets more lanes, of which those that do not exist have
// activations of 0. Within these stretches kernels may have their own order.
//
// Every function is `static`: the files of the kernels are compiled for different CPUs, and must not share code.
#pragma once

#include <cstdint>

#include "inline.h"
#include "skim/packed.h"

namespace skim {

static constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Superblocks of a row, the last, shorter one included.
static constexpr int64_t Superblocks(int64_t K) { return CeilDiv(K, kSuperblockColumns); }

// Whether a last superblock is read as it is, 64 or 128 columns.
static constexpr bool TailIsDense(int lanes) { return lanes == 8 || lanes == 16; }

// Lanes that narrower ones are spread out to; more are spread out to those of a full superblock.
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

// Calls body(first column, columns that exist, columns) for each stretch of a row: all full superblocks, then a last
// one that is not spread out, or each code of one that is.
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
