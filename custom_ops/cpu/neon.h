// What the NEON kernels of all instruction sets share: codes, 16 at a time, tables of bytes, and activations.
//
// Codes come in groups of 16 consecutive columns: code j of one half of a superblock's 32 lanes. So the columns stay in
// their order.
//
// Files that include this are compiled for different CPUs. So nothing here may have external linkage.
#pragma once

#include <arm_neon.h>

#include <cstring>
#include <type_traits>

#include "row.h"
#include "skim/kernels.h"

namespace skim {
namespace {

constexpr int kGroup = 16;  // columns that are looked up at once

// ---- codes

// Field kI of code kJ of 16 lanes, in its place within the code. Bits beside it are of no meaning.
template <typename Code, int kJ, int kI>
SKIM_INLINE uint8x16_t FieldOf(const uint8_t* p, int64_t lanes) {
  constexpr Field f = Code::FieldAt(kJ, kI);
  constexpr int right = f.bit - f.code_bit;
  const uint8x16_t bits = vld1q_u8(p + f.vector * lanes);
  if constexpr (right > 0) return vshrq_n_u8(bits, right);
  if constexpr (right < 0) return vshlq_n_u8(bits, -right);
  return bits;
}

template <typename Code, int kJ, int kI>
SKIM_INLINE uint8x16_t InsertField(uint8x16_t code, const uint8_t* p, int64_t lanes) {
  constexpr Field f = Code::FieldAt(kJ, kI);
  return vbslq_u8(vdupq_n_u8(((1 << f.length) - 1) << f.code_bit), FieldOf<Code, kJ, kI>(p, lanes), code);
}

// Code kJ of 16 of the `lanes` lanes of a superblock, the first of them at p. The bits from kClean on are 0.
template <typename Code, int kClean, int kJ>
SKIM_INLINE uint8x16_t CodeOf(const uint8_t* p, int64_t lanes) {
  constexpr int fields = Code::Fields(kJ);
  constexpr Field f = Code::FieldAt(kJ, 0);
  constexpr int clean = fields == 1 ? kClean : f.length;
  uint8x16_t code = FieldOf<Code, kJ, 0>(p, lanes);
  if constexpr (8 - f.bit > clean) code = vandq_u8(code, vdupq_n_u8((1 << clean) - 1));
  if constexpr (fields > 1) code = InsertField<Code, kJ, 1>(code, p, lanes);
  if constexpr (fields > 2) code = InsertField<Code, kJ, 2>(code, p, lanes);
  return code;
}

// Calls body(i) for i = 0..kCount-1, constants. What arrays hold stays in registers that way; after a loop, which is
// written out late, GCC stores it.
template <int kCount, typename Body>
SKIM_INLINE void Unroll(Body&& body) {
  if constexpr (kCount > 1) Unroll<kCount - 1>(body);
  body(std::integral_constant<int, kCount - 1>());
}

constexpr int kTailBytes = kSuperblockColumns + 8;  // the last of 8 lanes are stored as 16

// The codes of a last superblock, in the order of the padded columns; returns how many there are. Not inlined: it is
// short beside a row, and there would be a copy for every kind of levels.
template <typename Code, int kClean>
__attribute__((noinline)) int64_t TailCodes(const uint8_t* p, int lanes, uint8_t* codes) {
  constexpr int kBits = Code::kBits;
  // What lies behind the row is not ours to read.
  uint8_t spread[kBits * kLanes] = {};
  const int64_t stride = lanes <= 16 ? 16 : kLanes;
  for (int i = 0; i < kBits; ++i) {
    for (int lane = 0; lane < lanes; lane += 4) std::memcpy(spread + i * stride + lane, p + i * lanes + lane, 4);
  }
  const int step = SpreadLanes(lanes);
  for (int64_t lane = 0; lane < step; lane += kGroup) {
    Unroll<8>([&](auto j) __attribute__((always_inline)) {
      constexpr int kJ = decltype(j)::value;
      vst1q_u8(codes + kJ * step + lane, CodeOf<Code, kClean, kJ>(spread + lane, stride));
    });
  }
  return 8 * step;
}

// Calls sink(codes, column) for each 16 columns of the superblocks begin..end of kRows rows: their codes as an array of
// registers, and the first column, counted from `begin`.
template <typename Code, int kClean, int kRows, typename Sink>
SKIM_INLINE void EachCodes(const uint8_t* row, int64_t row_bytes, int64_t K, int64_t begin, int64_t end, Sink&& sink) {
  constexpr int kBits = Code::kBits;
  const int64_t full = Min(K / kSuperblockColumns, end);
  const uint8_t* p = row + begin * kBits * kLanes;
  int64_t column = 0;
  for (int64_t block = begin; block < full; ++block, p += kBits * kLanes, column += kSuperblockColumns) {
    for (int lane = 0; lane < kLanes; lane += kGroup) {
      Unroll<8>([&](auto j) __attribute__((always_inline)) {
        constexpr int kJ = decltype(j)::value;
        uint8x16_t codes[kRows];
        for (int r = 0; r < kRows; ++r) codes[r] = CodeOf<Code, kClean, kJ>(p + r * row_bytes + lane, kLanes);
        sink(codes, column + lane + kJ * kLanes);
      });
    }
  }
  if (full == end) return;
  uint8_t tails[kRows][kTailBytes];
  int64_t columns = 0;
  for (int r = 0; r < kRows; ++r) columns = TailCodes<Code, kClean>(p + r * row_bytes, TailLanes(K), tails[r]);
  for (int64_t k = 0; k < columns; k += kGroup) {
    uint8x16_t codes[kRows];
    for (int r = 0; r < kRows; ++r) codes[r] = vld1q_u8(tails[r] + k);
    sink(codes, column + k);
  }
}

// ---- tables of bytes

// What a code may have beside its bits: a table of fewer than 16 entries repeats them.
constexpr int TableClean(int bits) { return bits < 4 ? 4 : bits; }

// kBytes bytes, repeated to 16.
template <int kBytes>
SKIM_INLINE uint8x16_t Repeat(const void* p) {
  if constexpr (kBytes == 16) {
    return vld1q_u8(static_cast<const uint8_t*>(p));
  } else {
    uint64_t word = 0;
    std::memcpy(&word, p, kBytes);
    if constexpr (kBytes == 2) return vreinterpretq_u8_u16(vdupq_n_u16(static_cast<uint16_t>(word)));
    if constexpr (kBytes == 4) return vreinterpretq_u8_u32(vdupq_n_u32(static_cast<uint32_t>(word)));
    return vreinterpretq_u8_u64(vdupq_n_u64(word));
  }
}

// Registers that one instruction looks up in. They must be consecutive, so compilers have to know them as one.
template <int kCount>
struct Registers;
template <>
struct Registers<1> {
  struct Type {
    uint8x16_t val[1];
  };
};
template <>
struct Registers<2> {
  using Type = uint8x16x2_t;
};
template <>
struct Registers<4> {
  using Type = uint8x16x4_t;
};

// A table of 2^kBits bytes. A code's bits from TableClean(kBits) on must be 0.
template <int kBits>
struct ByteTable {
  static constexpr int kAtOnce = kBits <= 4 ? 1 : kBits == 5 ? 2 : 4;
  static constexpr int kParts = kBits <= 6 ? 1 : 1 << (kBits - 6);
  typename Registers<kAtOnce>::Type parts[kParts];

  // Of 16 entries from `16 i` on, entries(i).
  template <typename Load>
  SKIM_INLINE void Fill(Load&& entries) {
    for (int i = 0; i < kParts; ++i) {
      for (int j = 0; j < kAtOnce; ++j) parts[i].val[j] = entries(i * kAtOnce + j);
    }
  }

  SKIM_INLINE uint8x16_t operator()(uint8x16_t codes) const {
    if constexpr (kBits <= 4) return vqtbl1q_u8(parts[0].val[0], codes);
    if constexpr (kBits == 5) return vqtbl2q_u8(parts[0], codes);
    if constexpr (kBits >= 6) {
      uint8x16_t bytes = vqtbl4q_u8(parts[0], codes);
      // Indices beyond a table leave what is there.
      for (int i = 1; i < kParts; ++i) bytes = vqtbx4q_u8(bytes, parts[i], vsubq_u8(codes, vdupq_n_u8(64 * i)));
      return bytes;
    }
  }
};

// ---- levels as signed bytes, `kZero` more than they are

template <typename CodeOfRow>
struct SignedTable {
  using Code = CodeOfRow;
  static constexpr int kBits = Code::kLevelBits, kClean = TableClean(kBits), kZero = 0;
  static constexpr int kRows = kBits <= 6 ? 2 : 1;  // whose tables fit into the registers
  ByteTable<kBits> table;

  SKIM_INLINE SignedTable(const RowRun& run, int64_t row) {
    const RowLevels<Code, int8_t> levels(run, row);
    table.Fill([&](int i)
                   __attribute__((always_inline)) { return Repeat<Min(16, 1 << kBits)>(levels.data() + 16 * i); });
  }
  SKIM_INLINE int8x16_t operator()(uint8x16_t codes) const { return vreinterpretq_s8_u8(table(codes)); }
};

template <int kBits>
struct SignedAffine {
  using Code = RowCode<kBits>;
  static constexpr int kClean = kBits, kZero = kBits < 8 ? 1 << (kBits - 1) : 0;
  static constexpr int kRows = 2;

  SKIM_INLINE SignedAffine(const RowRun&, int64_t) {}
  SKIM_INLINE int8x16_t operator()(uint8x16_t codes) const {
    return vreinterpretq_s8_u8(kBits == 8 ? veorq_u8(codes, vdupq_n_u8(128)) : codes);
  }
};

// ---- rows

constexpr int64_t kTileRows = 16;
constexpr int kMicroRows = 4;

// Calls body(row of the tile, its run, its end).
template <typename Body>
SKIM_INLINE void EachEnd(const Layer& layer, int64_t begin, int64_t rows, Body&& body) {
  const RowRun* run = layer.runs;
  for (int64_t r = 0; r < rows; ++r) {
    run = RunOf(run, begin + r);
    body(r, *run, MakeRowEnd(layer, *run, begin + r - run->first));
  }
}

SKIM_INLINE float32x4_t Load4(const void* data, FloatType type, int64_t i) {
  return type == FloatType::kFloat32
             ? vld1q_f32(static_cast<const float*>(data) + i)
             : vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t*>(data) + i)));
}

// Token m of x as PaddedColumns(K) floats, multiplied by the column scale.
void ScaleToken(const Layer& layer, const void* x, FloatType type, int64_t m, float* out) {
  const int64_t K = layer.weights.K;
  const uint16_t* scale = ColumnScale(layer);
  EachStretch(K, [&](int64_t first, int64_t present, int64_t columns) {
    int64_t k = 0;
    for (; k + 4 <= present; k += 4) {
      float32x4_t values = Load4(x, type, m * K + first + k);
      if (scale) values = vmulq_f32(values, Load4(scale, FloatType::kFloat16, first + k));
      vst1q_f32(out + k, values);
    }
    for (; k < present; ++k) {
      const float value = LoadFloat(x, type, m * K + first + k);
      out[k] = scale ? value * HalfToFloat(scale[first + k]) : value;
    }
    for (; k < columns; ++k) out[k] = 0;
    out += columns;
  });
}

}  // namespace
}  // namespace skim
