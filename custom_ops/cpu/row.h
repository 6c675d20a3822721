// What the kernels of all instruction sets know of a row beside its codes, and the way through the rows of a layer.
// `static`, as they must not share code.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "columns.h"
#include "half.h"
#include "skim/kernels.h"

namespace skim {

// Scales [K] of the columns as float16; null: all 1.
static inline const uint16_t* ColumnScale(const Layer& layer) {
  return layer.weights.column_scale.size ? layer.weights.column_scale.data : nullptr;
}

// What a token's product with a row, sum_k level * x with unscaled levels, becomes before it is stored.
struct RowEnd {
  float scale, offset, bias;
  int64_t n;  // original row
};

// The largest memory that windows of a width have; 0 for a class without windows.
static constexpr int LargestMemory(int row_class) {
  int largest = 0;
  for (const auto& window : kWindowClasses) {
    if (HasWindows(row_class) && window[0] == ClassBits(row_class) && window[1] > largest) largest = window[1];
  }
  return largest;
}

// How kernels read the rows of a class.
template <int kClass>
using CodeOfClass = RowCode<ClassBits(kClass), LargestMemory(kClass)>;

// What the kernels of an instruction set have for each class: `Choice::Of<class>()`.
template <typename T>
struct ByClass {
  T of[kClasses];
};

template <typename Choice, int... kClass>
static constexpr auto ListClasses(std::integer_sequence<int, kClass...>) {
  return ByClass<decltype(Choice::template Of<0>())>{{Choice::template Of<kClass>()...}};
}

template <typename Choice>
static constexpr auto kByClass = ListClasses<Choice>(std::make_integer_sequence<int, kClasses>());

// Eight int8 entries, none of them -128: their negatives in reversed order.
static inline uint64_t Mirrored(uint64_t entries) {
  constexpr uint64_t kSigns = 0x8080808080808080;
  const uint64_t above = entries ^ kSigns;  // 128 more, at least 1: no byte carries
  return __builtin_bswap64((~above + 0x0101010101010101) ^ kSigns);
}

// Four int8 entries, each twice.
static inline uint64_t Doubled(uint32_t entries) {
  uint64_t apart = (entries | uint64_t{entries} << 16) & 0x0000ffff0000ffff;
  apart = (apart | apart << 8) & 0x00ff00ff00ff00ff;
  return apart | apart << 8;
}

// The levels of a row of a run, unscaled, by what they are looked up by, `Code::kLevelBits` bits. Of windows the
// codebook has the lower half. Kernels for windows serve smaller memories, too: the bits that stand furthest before a
// code are the lowest of its window, and are ignored if every level is there for both of their values.
template <typename Code, typename T>
class RowLevels {
 public:
  SKIM_INLINE RowLevels(const RowRun& run, int64_t row)
      : entries_(static_cast<const T*>(run.codebook) + row * CodebookEntries(run.row_class)) {
    if constexpr (Code::kMemory > 0) Mirror(Code::kMemory - ClassMemory(run.row_class));
  }

  SKIM_INLINE const T* data() const { return Code::kMemory > 0 ? all_ : entries_; }

 private:
  static constexpr int kHalf = 1 << (Code::kLevelBits - 1);

  SKIM_INLINE void Mirror(int ignored) {
    if constexpr (sizeof(T) == 1) {
      constexpr int kWords = kHalf / 8;
      uint64_t words[2 * kWords];
      if (Code::kMemory > 1 && ignored == 1) {
        uint32_t entries;
        std::memcpy(&entries, entries_, sizeof entries);
        words[0] = Doubled(entries);
      } else {
        std::memcpy(words, entries_, kHalf);
      }
      for (int i = 0; i < kWords; ++i) words[2 * kWords - 1 - i] = Mirrored(words[i]);
      std::memcpy(all_, words, sizeof words);
    } else {
      for (int i = 0; i < kHalf; ++i) all_[i] = entries_[i >> ignored];
      for (int i = 0; i < kHalf; ++i) all_[kHalf + i] = all_[kHalf - 1 - i] ^ 0x8000;  // of float16
    }
  }

  const T* entries_;
  T all_[Code::kMemory > 0 ? 1 << Code::kLevelBits : 1];
};

static inline RowEnd MakeRowEnd(const Layer& layer, const RowRun& run, int64_t row) {
  const bool affine = IsAffine(run.row_class);
  RowEnd end;
  end.scale = run.row_scale ? HalfToFloat(run.row_scale[affine ? 2 * row : row]) : 1.0f;
  end.offset = affine ? HalfToFloat(run.row_scale[2 * row + 1]) : 0.0f;
  end.n = layer.destination ? layer.destination[run.first + row] : run.first + row;
  end.bias = layer.weights.bias.size ? layer.weights.bias.data[end.n] : 0.0f;
  return end;
}

// `sum`: of the token's x.
static inline float Finish(const RowEnd& end, float product, float sum) {
  return product * end.scale + (end.offset * sum + end.bias);
}

// The run of a stored row, looked for from `run` on.
static inline const RowRun* RunOf(const RowRun* run, int64_t stored) {
  while (stored >= run->first + run->count) ++run;
  return run;
}

// Calls body(run, first row in it, rows, place among the rows) for the runs that rows begin..begin+rows belong to.
template <typename Body>
static SKIM_INLINE void EachRun(const Layer& layer, int64_t begin, int64_t rows, Body&& body) {
  const RowRun* run = layer.runs;
  for (int64_t at = 0; at < rows;) {
    run = RunOf(run, begin + at);
    const int64_t row = begin + at - run->first, count = Min(rows - at, run->count - row);
    body(*run, row, count, at);
    at += count;
  }
}

// Calls body(place among the rows, its run, its row in the run) for rows begin..begin+rows, and for rows that only fill
// them up to a multiple of `micro_rows`, which repeat the last one.
template <typename Body>
static SKIM_INLINE void EachTileRow(const Layer& layer, int64_t begin, int64_t rows, int64_t micro_rows, Body&& body) {
  const RowRun* run = layer.runs;
  for (int64_t r = 0; r < CeilDiv(rows, micro_rows) * micro_rows; ++r) {
    const int64_t stored = begin + Min(r, rows - 1);
    run = RunOf(run, stored);
    body(r, *run, stored - run->first);
  }
}

// Writes row `row` of a run to y [K]: `levels`, unscaled and padded as `EachStretch` says, become weights.
static inline void StoreWeights(const Layer& layer, const RowRun& run, int64_t row, const float* levels, void* y,
                                FloatType type) {
  const RowEnd end = MakeRowEnd(layer, run, row);
  const uint16_t* scale = ColumnScale(layer);
  EachStretch(layer.weights.K, [&](int64_t first, int64_t present, int64_t columns) {
    for (int64_t k = 0; k < present; ++k) {
      const float level = end.offset + end.scale * levels[k];
      StoreFloat(y, type, first + k, scale ? level * HalfToFloat(scale[first + k]) : level);
    }
    levels += columns;
  });
}

}  // namespace skim
