// From packed codes to halves: the levels of one row, held where they are looked up fastest.
//
// A word of codes is one word of each of a row's `bits` vectors (docs/format.md): four lanes of eight codes. All kinds
// of levels turn it into halves without their row's scale and offset, two codes at a time; code j becomes the fragments
// [j][0] for lanes 0 and 1, and [j][1] for lanes 2 and 3.
#pragma once

#include <device.cuh>
#include <type_traits>

#include "skim/packed.h"

namespace skim::cuda {

enum class LevelKind { kTableInt8, kTableFloat16, kAffine };

// Fields of codes that lie beside each other in a byte are decoded together: codes `PairFirst(bits, pair)` and
// PairDistance(bits) further, for pair 0..3.
static constexpr int PairDistance(int bits) { return bits == 1 ? 4 : bits == 2 ? 2 : 1; }
static constexpr int PairFirst(int bits, int pair) {
  return pair / PairDistance(bits) * 2 * PairDistance(bits) + pair % PairDistance(bits);
}

// Code j of four lanes, one in each byte, times 2^shift.
template <int kBits>
SKIM_DEVICE uint32_t CodeBytes(const uint32_t (&word)[kBits], int j, int shift = 0) {
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < FieldCount(kBits, j); ++i) {
    const Field f = CodeField(kBits, j, i);
    const int left = f.code_bit + shift - f.bit;
    const uint32_t mask = (((1u << f.length) - 1) << (f.code_bit + shift)) * 0x01010101u;
    codes |= (left >= 0 ? word[f.vector] << left : word[f.vector] >> -left) & mask;
  }
  return codes;
}

// Both codes of a pair, for widths up to 4: the first in the low nibbles of the bytes.
template <int kBits>
SKIM_DEVICE uint32_t CodeNibbles(const uint32_t (&word)[kBits], int pair) {
  const int first = PairFirst(kBits, pair);
  return CodeBytes(word, first) | CodeBytes(word, first + PairDistance(kBits), 4);
}

// Bytes 0..255 become the halves 1024 + byte, as the lowest bits of a half of this size count ones.
constexpr uint32_t kHalf1024 = 0x64646464;  // its high byte, four times

// A half2 that has n - 1024 twice, n being in 1024..2047.
static constexpr uint32_t TwoHalves(uint32_t n) { return (0x6400 + (n - 1024)) * 0x10001u; }

// Up to 16 bytes in registers, looked up by byte permutation.
template <int kBits>
struct ByteTable {
  static constexpr int kWords = kBits <= 3 ? 2 : 4;
  uint32_t words[kWords];

  // The entries of eight codes in the nibbles of `codes`: those of its low half, then of its high one.
  SKIM_DEVICE void LookUp(uint32_t codes, uint32_t (&entries)[2]) const {
    if constexpr (kBits <= 3) {
      entries[0] = Permute(words[0], words[1], codes);
      entries[1] = Permute(words[0], words[1], codes >> 16);
    } else {
      // Both halves of the table by the code's low bits, then one of them by its high bit.
      const uint32_t low = codes & 0x77777777, half = (codes >> 1 & 0x44444444) | 0x32103210;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t at = low >> 16 * i;
        entries[i] = Permute(Permute(words[0], words[1], at), Permute(words[2], words[3], at), half >> 16 * i);
      }
    }
  }
};

// `kBytes` bytes to registers, the rest of which is 0; `from` is a multiple of the smaller of kBytes and 16.
template <int kBytes, int kWords>
SKIM_DEVICE void LoadTable(const void* from, uint32_t (&words)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = 0;
  if constexpr (kBytes == 2) {
    words[0] = Load(static_cast<const uint16_t*>(from));
  } else if constexpr (kBytes == 4) {
    words[0] = Load(static_cast<const uint32_t*>(from));
  } else if constexpr (kBytes == 8) {
    const uint2 v = Load(static_cast<const uint2*>(from));
    words[0] = v.x, words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 v = Load(static_cast<const uint4*>(from) + i);
      words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
  }
}

constexpr int kMaxRegisterBits = 4;  // of codebooks in registers

// Bytes of shared memory for the tables of 16 rows with more bits.
static constexpr int MemoryTableBytes(int bits) { return 128 << bits; }

// Where levels that do not fit into registers are looked up. In shared memory every thread has its own bank, at the
// price of 128 bytes for an entry of 16 rows; from the L1 cache they need no room.
enum class Place { kShared, kCache };

// The levels of a thread's row. `Prepare` is called once, then `Decode` for each word of codes.
//   kSharedBytes: what the tables of 16 rows take in shared memory.
//   kTogether: codes of a word that are decoded at once, and words. Two share their work; what looks entries up in
//   memory
//     has so many of them on their way that one of one fills the registers.
template <LevelKind kKind, int kBits, Place kPlace>
class Levels;

// int8 codebooks up to 4 bits.
template <int kBits, Place kPlace>
class RegisterInt8 {
 public:
  static constexpr int kSharedBytes = 0, kTogether = 2;

  SKIM_DEVICE void Prepare(const RowRun& run, int64_t row, char*, int, int) {
    LoadTable<(1 << kBits)>(static_cast<const char*>(run.codebook) + (row << kBits), table_.words);
#pragma unroll
    for (uint32_t& word : table_.words) word ^= 0x80808080;  // 128 more, so that no entry is negative
  }

  SKIM_DEVICE void Decode(const uint32_t (&word)[kBits], int pair, uint32_t (&halves)[2][2]) const {
    uint32_t entries[2];  // of lanes 0, 1 and 2, 3, with the pair's codes in turn
    table_.LookUp(CodeNibbles(word, pair), entries);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      halves[0][i] = SubtractHalf2(Permute(entries[i], kHalf1024, 0x4240), TwoHalves(1024 + 128));
      halves[1][i] = SubtractHalf2(Permute(entries[i], kHalf1024, 0x4341), TwoHalves(1024 + 128));
    }
  }

 private:
  ByteTable<kBits> table_;
};

// float16 codebooks up to 4 bits: a table of low bytes and one of high bytes.
template <int kBits, Place kPlace>
class RegisterFloat16 {
 public:
  static constexpr int kSharedBytes = 0, kTogether = 2;

  SKIM_DEVICE void Prepare(const RowRun& run, int64_t row, char*, int, int) {
    uint32_t halves[2 * ByteTable<kBits>::kWords];
    LoadTable<(2 << kBits)>(static_cast<const char*>(run.codebook) + (row << (kBits + 1)), halves);
#pragma unroll
    for (int i = 0; i < ByteTable<kBits>::kWords; ++i) {
      low_.words[i] = Permute(halves[2 * i], halves[2 * i + 1], 0x6420);
      high_.words[i] = Permute(halves[2 * i], halves[2 * i + 1], 0x7531);
    }
  }

  SKIM_DEVICE void Decode(const uint32_t (&word)[kBits], int pair, uint32_t (&halves)[2][2]) const {
    const uint32_t codes = CodeNibbles(word, pair);
    uint32_t low[2], high[2];
    low_.LookUp(codes, low);
    high_.LookUp(codes, high);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      halves[0][i] = Permute(low[i], high[i], 0x6240);
      halves[1][i] = Permute(low[i], high[i], 0x7351);
    }
  }

 private:
  ByteTable<kBits> low_, high_;
};

// Codebooks of 5 bits and more, both types. In shared memory they are halves, entry by entry, and of each for each of
// the 32 threads of a warp those of its rows g and g + 8: a thread reads its own bank.
template <bool kInt8, int kBits, Place kPlace>
class MemoryTable {
 public:
  static constexpr int kSharedBytes = kPlace == Place::kShared ? MemoryTableBytes(kBits) : 0;
  static constexpr int kTogether = 1;

  // `half`: 0 for row g, 1 for row g + 8. In shared memory the warps fill the table together, `warps` of them.
  SKIM_DEVICE void Prepare(const RowRun& run, int64_t row, char* shared, int half, int warps) {
    const char* codebook = static_cast<const char*>(run.codebook);
    const auto first = static_cast<uint32_t>(row) << kBits;
    if constexpr (kPlace == Place::kShared) {
      table_ = shared;
      first_ = 4 * (threadIdx.x % 32) + 2 * half;
      for (int e = threadIdx.x / 32; e < 1 << kBits; e += warps) {
        *reinterpret_cast<uint16_t*>(shared + first_ + 128 * e) = Entry(codebook, first + e);
      }
    } else {
      table_ = codebook;
      first_ = first;
    }
  }

  SKIM_DEVICE void Decode(const uint32_t (&word)[kBits], int j, uint32_t (&halves)[1][2]) const {
    const uint32_t codes = CodeBytes(word, j);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      halves[0][i] = LookUp(codes >> 16 * i & 0xff) | LookUp(codes >> (16 * i + 8) & 0xff) << 16;
    }
  }

 private:
  static SKIM_DEVICE uint16_t Entry(const char* codebook, uint32_t e) {
    if constexpr (kInt8) return FloatToHalf(Load(reinterpret_cast<const int8_t*>(codebook) + e));
    return Load(reinterpret_cast<const uint16_t*>(codebook) + e);
  }

  SKIM_DEVICE uint32_t LookUp(uint32_t code) const {
    if constexpr (kPlace == Place::kShared) return *reinterpret_cast<const uint16_t*>(table_ + first_ + 128 * code);
    return Entry(table_, first_ + code);
  }

  const char* table_;  // of all rows, so that only one address has 64 bits
  uint32_t first_;     // of this row: bytes in shared memory, else entries
};

template <int kBits, Place kPlace>
class Levels<LevelKind::kTableInt8, kBits, kPlace>
    : public std::conditional_t<kBits <= kMaxRegisterBits, RegisterInt8<kBits, kPlace>,
                                MemoryTable<true, kBits, kPlace>> {};

template <int kBits, Place kPlace>
class Levels<LevelKind::kTableFloat16, kBits, kPlace>
    : public std::conditional_t<kBits <= kMaxRegisterBits, RegisterFloat16<kBits, kPlace>,
                                MemoryTable<false, kBits, kPlace>> {};

// Even levels: code - 2^(bits - 1).
template <int kBits, Place kPlace>
class Levels<LevelKind::kAffine, kBits, kPlace> {
 public:
  static constexpr int kSharedBytes = 0, kTogether = 2;

  SKIM_DEVICE void Prepare(const RowRun&, int64_t, char*, int, int) {}

  SKIM_DEVICE void Decode(const uint32_t (&word)[kBits], int pair, uint32_t (&halves)[2][2]) const {
    constexpr uint32_t kZero = TwoHalves(1024 + (1 << (kBits - 1)));
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t codes = CodeBytes(word, PairFirst(kBits, pair) + k * PairDistance(kBits));
      halves[k][0] = SubtractHalf2(Permute(codes, kHalf1024, 0x4140), kZero);
      halves[k][1] = SubtractHalf2(Permute(codes, kHalf1024, 0x4342), kZero);
    }
  }
};

// What a row's product, of levels as `Levels` gives them, becomes: product * scale + offset * (sum of x).
struct RowScale {
  float scale, offset;
};

SKIM_DEVICE RowScale LoadRowScale(LevelKind kind, const RowRun& run, int64_t row, float column_unit) {
  if (kind == LevelKind::kTableFloat16) return {column_unit, 0};
  if (kind == LevelKind::kTableInt8) return {HalfToFloat(Load(run.row_scale + row)) * column_unit, 0};
  return {HalfToFloat(Load(run.row_scale + 2 * row)) * column_unit,
          HalfToFloat(Load(run.row_scale + 2 * row + 1)) * column_unit};
}

static constexpr LevelKind KindOf(int row_class, CodebookType codebook) {
  if (IsAffine(row_class)) return LevelKind::kAffine;
  return codebook == CodebookType::kInt8 ? LevelKind::kTableInt8 : LevelKind::kTableFloat16;
}

// Calls body(kind, bits), both as constants, for the rows of a class.
template <LevelKind kTable, typename Body>
SKIM_DEVICE void WithLevels(int row_class, Body&& body) {
#define SKIM_CASE(kind, bits)                       \
  case 8 * (kind == LevelKind::kAffine) + bits - 1: \
    return body(std::integral_constant<LevelKind, kind>{}, std::integral_constant<int, bits>{});
#define SKIM_CASES(kind) \
  SKIM_CASE(kind, 1)     \
  SKIM_CASE(kind, 2)     \
  SKIM_CASE(kind, 3) SKIM_CASE(kind, 4) SKIM_CASE(kind, 5) SKIM_CASE(kind, 6) SKIM_CASE(kind, 7) SKIM_CASE(kind, 8)
  switch (row_class) {
    SKIM_CASES(kTable)
    SKIM_CASES(LevelKind::kAffine)
  }
#undef SKIM_CASES
#undef SKIM_CASE
}

}  // namespace skim::cuda
