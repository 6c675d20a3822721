// The way of a warp's codes to shared memory, ahead of their multiplication, over the ends of tiles and of classes: the
// memory is never without a request while a warp decodes, adds up and stores.
#pragma once

#include <device.cuh>

#include "codes.cuh"
#include "levels.cuh"
#include "skim/packed.h"
#include "tile.cuh"

namespace skim::cuda {

// What is copied of a run of rows, in the form that takes the fewest instructions.
struct StreamRun {
  const uint8_t* codes;
  const char* tables;  // codebooks that are looked up in registers
  int count;           // rows
  int bits;
  int row_bytes;    // of codes
  int table_bytes;  // of a row's codebook; 0: none is copied
};

// Of a layer. A warp has `slots` slots.
struct StreamPlan {
  StreamRun runs[kClasses];
  int tiles[kClasses];  // of each run
  int run_count;
  int K;
  int row_blocks;  // blocks that share the rows
  int slots, slot_bytes;
};

// Codes come in units, kWords words of each vector for each thread: so many superblocks of kRowTiles * 16 rows. Units
// of a tile are shared by kWarps warps in turn. A unit lies in a slot of the warp's shared memory,
// [vector][row tile][row g or g + 8][lane], with the codebooks behind it that are looked up in registers.
template <int kRowTiles, int kWords, int kWarps>
class CodeStream {
 public:
  static constexpr int kSuperblocks = kWords / 2;  // of a unit: 8 words of a vector are for four threads
  static constexpr int kRows = kMmaRows * kRowTiles;
  static constexpr int kColumns = kSuperblocks * kSuperblockColumns;

  static constexpr int Units(int K) { return static_cast<int>((static_cast<unsigned>(K) + kColumns - 1) / kColumns); }
  static constexpr int CodeBytes(int bits) { return bits * kVectorBytes; }

  // But for the number of slots, and of blocks.
  static StreamPlan Plan(const Layer& layer) {
    StreamPlan plan{};
    plan.run_count = layer.run_count;
    plan.K = static_cast<int>(layer.weights.K);
    for (int i = 0; i < layer.run_count; ++i) {
      const RowRun& run = layer.runs[i];
      const int bits = ClassBits(run.row_class), level_bits = LevelBits(run.row_class);
      const bool int8 = layer.weights.codebook_type == CodebookType::kInt8;
      const bool in_registers = !IsAffine(run.row_class) && InRegisters(level_bits, ClassMemory(run.row_class), int8);
      const int entry_bytes = int8 ? 1 : 2;
      const int table_bytes = in_registers ? entry_bytes * static_cast<int>(CodebookEntries(run.row_class)) : 0;
      plan.runs[i] = {run.codes,
                      static_cast<const char*>(run.codebook),
                      static_cast<int>(run.count),
                      bits,
                      static_cast<int>(RowBytes(bits, layer.weights.K)),
                      table_bytes};
      plan.tiles[i] = static_cast<int>(CeilDiv(run.count, kRows));
      const int slot_bytes = CodeBytes(bits) + kRows * table_bytes;
      if (slot_bytes > plan.slot_bytes) plan.slot_bytes = slot_bytes;
    }
    return plan;
  }

  // Of the tile `first` and every row_blocks-th one from there on. `slots`: of the warp.
  SKIM_DEVICE CodeStream(const StreamPlan& plan, int first, char* slots)
      : plan_(plan), tiles_(plan.tiles, plan.run_count, first), unit_(Warp()), slots_(slots) {
#pragma unroll 1
    for (int i = 0; i < plan.slots; ++i) Refill();
  }

  // Waits for the next unit to be multiplied, and returns its slot. It is there after __syncwarp.
  SKIM_DEVICE const char* Next() const {
    if (plan_.slots == 1) {
      WaitForCopies<0>();
    } else if (plan_.slots == 2) {
      WaitForCopies<1>();
    } else {
      WaitForCopies<2>();
    }
    return slots_ + at_ * plan_.slot_bytes;
  }

  // Lets the slot that Next has returned be filled again, after __syncwarp; the next one follows.
  SKIM_DEVICE void Refill() {
    if (unit_ < Units(plan_.K) && !tiles_.AtEnd()) {
      const StreamRun& run = plan_.runs[tiles_.Run()];
      char* slot = slots_ + at_ * plan_.slot_bytes;
      CopyCodes(run, slot + Lane() * kThreadBytes);
      if (run.table_bytes != 0) CopyTables(run, slot + CodeBytes(run.bits));
      unit_ += kWarps;
      if (unit_ >= Units(plan_.K)) {
        unit_ = Warp();
        tiles_.Skip(plan_.row_blocks);
      }
    }
    CommitCopies();
    if (++at_ == plan_.slots) at_ = 0;
  }

  // A thread's words first..first+kSome-1 of each vector in a slot.
  template <int kBits, int kSome>
  static SKIM_DEVICE void Read(const char* slot, int first, uint32_t (&words)[kRowTiles][2][kBits][kSome]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int v = 0; v < kBits; ++v) {
          const char* from = slot + v * kVectorBytes + (2 * r + h) * kRowsBytes + Lane() * kThreadBytes + 4 * first;
          Split(*reinterpret_cast<const CodeVector<kSome>*>(from), words[r][h][v]);
        }
      }
    }
  }

 private:
  static constexpr int kThreadBytes = 4 * kWords;       // of a vector of a row
  static constexpr int kRowsBytes = 32 * kThreadBytes;  // of eight rows
  static constexpr int kVectorBytes = 2 * kRowTiles * kRowsBytes;

  static SKIM_DEVICE int Lane() { return threadIdx.x % 32; }
  static SKIM_DEVICE int Warp() { return threadIdx.x / 32; }

  // Each thread copies what it will read itself, to `to` and on.
  SKIM_DEVICE void CopyCodes(const StreamRun& run, char* to) const {
    const int g = Lane() / 4, c = Lane() % 4, K = plan_.K;
    const int block = kSuperblocks * unit_ + c * kWords / 8, word = c * kWords % 8;
    const bool full = (block + 1) * kSuperblockColumns <= K;
    const uint8_t* column = run.codes + (block * run.bits * kLanes + 4 * word);
    const uint8_t* from[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      int row = tiles_.Tile() * kRows + 8 * i + g;
      if (row >= run.count) row = run.count - 1;  // computed once more, never stored
      from[i] = column + int64_t{row} * run.row_bytes;
    }
    if (full && K % (32 * kWords) == 0) {  // rows begin at multiples of a copy's size
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        if (v >= run.bits) break;
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
          CopyAsync<kThreadBytes>(to + v * kVectorBytes + i * kRowsBytes, from[i] + v * kLanes);
        }
      }
    } else {
      const int lanes = full ? kLanes : block * kSuperblockColumns < K ? TailLanes(K) : 0;
#pragma unroll 1
      for (int i = 0; i < run.bits * kWords; ++i) {
        const int v = i / kWords, w = i % kWords;
        const bool exists = 4 * (word + w) < lanes;
#pragma unroll
        for (int k = 0; k < 2 * kRowTiles; ++k) {
          const auto* code = reinterpret_cast<const uint32_t*>(from[k] + v * lanes) + w;
          reinterpret_cast<uint32_t*>(to + v * kVectorBytes + k * kRowsBytes)[w] = exists ? Load(code) : 0;
        }
      }
    }
  }

  // The codebooks of the tile's rows, which lie beside each other.
  SKIM_DEVICE void CopyTables(const StreamRun& run, char* to) const {
    const int first = tiles_.Tile() * kRows, left = run.count - first;
    const int bytes = (left < kRows ? left : kRows) * run.table_bytes;
    const char* from = run.tables + int64_t{first} * run.table_bytes;
#pragma unroll
    for (int k = 0; k < kRowTiles; ++k) {  // of 16 rows up to 512 bytes
      const int i = 16 * (32 * k + Lane());
      if (i + 16 <= bytes) CopyAsync(to + i, from + i);
    }
    if (bytes % 16 == 0) return;
#pragma unroll 1
    for (int i = bytes / 16 * 16 + 2 * Lane(); i < bytes; i += 2 * 32) {  // of a last tile
      *reinterpret_cast<uint16_t*>(to + i) = Load(reinterpret_cast<const uint16_t*>(from + i));
    }
  }

  const StreamPlan& plan_;
  TileCursor tiles_;
  int unit_;
  char* slots_;
  int at_ = 0;
};

}  // namespace skim::cuda
