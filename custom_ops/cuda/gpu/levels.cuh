// From packed codes to 16-bit elements (element.cuh): the levels of one row, held where they are looked up fastest.
//
// A word of codes is one word of each of a row's `bits` vectors (docs/format.md): four lanes of eight codes. All kinds
// of levels turn it into elements without their row's scale and offset, two codes at a time; code j becomes the
// fragments [j][0] for lanes 0 and 1, and [j][1] for lanes 2 and 3.
#pragma once

#include <device.cuh>
#include <type_traits>

#include "element.cuh"
#include "skim/packed.h"

namespace skim::cuda {

enum class LevelKind { kTableInt8, kTableFloat16, kAffine };

// Whether int8 entries are looked up in registers as elements, two bytes each. A byte becomes bfloat16 by so many
// instructions that it costs less to look up a second one, where that is one instruction.
template <typename Element>
static constexpr bool HasElements(int bits) {
  return !std::is_same_v<Element, Half> && bits <= 3;
}

// Fields of codes that lie near each other in a byte are decoded together: codes `PairFirst(bits, pair)` and
// PairDistance(bits) further, for pair 0..3. The first two pairs are codes 0..3.
static constexpr int PairDistance(int bits) { return bits <= 2 ? 2 : 1; }
static constexpr int PairFirst(int bits, int pair) {
  return pair / PairDistance(bits) * 2 * PairDistance(bits) + pair % PairDistance(bits);
}

// The k-th of `together` codes that are decoded in step i of 0..8 / together - 1.
static constexpr int CodeOfStep(int bits, int together, int i, int k) {
  return together == 1 ? i : PairFirst(bits, i) + k * PairDistance(bits);
}

// Code j of four lanes, or its window, one in each byte, times 2^shift.
template <typename Code>
SKIM_DEVICE uint32_t CodeBytes(const uint32_t (&word)[Code::kBits], int j, int shift = 0) {
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < Code::Fields(j); ++i) {
    const Field f = Code::FieldAt(j, i);
    const int left = f.code_bit + shift - f.bit;
    const uint32_t mask = (((1u << f.length) - 1) << (f.code_bit + shift)) * 0x01010101u;
    codes |= (left >= 0 ? word[f.vector] << left : word[f.vector] >> -left) & mask;
  }
  return codes;
}

// Two codes, for widths up to 4: the first in the low nibbles of the bytes.
template <typename Code>
SKIM_DEVICE uint32_t CodeNibbles(const uint32_t (&word)[Code::kBits], int first, int second) {
  return CodeBytes<Code>(word, first) | CodeBytes<Code>(word, second, 4);
}

// Both codes of a pair.
template <typename Code>
SKIM_DEVICE uint32_t CodeNibbles(const uint32_t (&word)[Code::kBits], int pair) {
  const int first = PairFirst(Code::kBits, pair);
  return CodeNibbles<Code>(word, first, first + PairDistance(Code::kBits));
}

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

// Where the codebooks of register tables are read from.
struct FromGlobal {
  template <typename T>
  static SKIM_DEVICE T Read(const T* from) {
    return Load(from);
  }
};
struct FromShared {
  template <typename T>
  static SKIM_DEVICE T Read(const T* from) {
    return *from;
  }
};

// `kBytes` bytes to registers, the rest of which is 0; `from` is a multiple of the smaller of kBytes and 16.
template <int kBytes, typename From = FromGlobal, int kWords>
SKIM_DEVICE void LoadTable(const void* from, uint32_t (&words)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = 0;
  if constexpr (kBytes == 2) {
    words[0] = From::Read(static_cast<const uint16_t*>(from));
  } else if constexpr (kBytes == 4) {
    words[0] = From::Read(static_cast<const uint32_t*>(from));
  } else if constexpr (kBytes == 8) {
    const uint2 v = From::Read(static_cast<const uint2*>(from));
    words[0] = v.x, words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 v = From::Read(static_cast<const uint4*>(from) + i);
      words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
  }
}

// The upper half of the levels of windows: the lower one's negatives in reversed order. Of four int8 entries, none of
// them -128.
SKIM_DEVICE uint32_t Mirrored(uint32_t bytes) {
  const uint32_t above = bytes ^ 0x80808080;  // 128 more, at least 1: no byte of the next line carries
  return Permute((~above + 0x01010101) ^ 0x80808080, 0, 0x0123);
}
// Of two float16 entries.
SKIM_DEVICE uint32_t MirroredHalves(uint32_t halves) { return Permute(halves ^ 0x80008000, 0, 0x1032); }

constexpr int kMaxRegisterBits = 4;  // of codebooks in registers

// Whether a codebook is looked up in registers. Windows take some of their own, where float16 entries leave none.
static constexpr bool InRegisters(int level_bits, int memory, bool int8) {
  return level_bits <= (int8 || memory == 0 ? kMaxRegisterBits : kMaxRegisterBits - 1);
}

// Where levels that do not fit into registers are looked up. In shared memory every thread has its own bank, at the
// price of 128 bytes for an entry of 16 rows. If entries are 256 bytes apart, one instruction makes an address of a
// code; another 16 rows have room in between. From the L1 cache levels need no room.
enum class Place { kShared, kSharedApart, kCache };

static constexpr int EntryDistance(Place place) {
  return place == Place::kCache ? 0 : place == Place::kShared ? 128 : 256;
}

// The levels of a thread's row. `Prepare` is called once, with what holds the codebooks of several rows and the row's
// number there, then `Decode` for each word of codes.
//   kInMemory: whether they are looked up in memory; if that is shared memory, the warps `Fill` it first.
//   kTogether: codes of a word that are decoded at once. Two share their work; lookups in memory are so many that those
//     of one code fill the registers.
//   kInOrder: whether words come one after the other, and the lookups of the next codes wait for those of these, since
//     otherwise they would not fit into the registers.
template <LevelKind kKind, typename Code, Place kPlace, typename Element = Half>
class Levels;

// int8 codebooks up to 4 bits: a table of bytes, which become elements after they are looked up.
template <typename Code, typename Element>
class RegisterBytes {
 public:
  static constexpr bool kInMemory = false;
  static constexpr int kTogether = 2;
  static constexpr bool kInOrder = std::is_same_v<Element, Bfloat16>;

  template <typename From = FromGlobal>
  SKIM_DEVICE void Prepare(const void* codebook, int64_t row, const char*, int) {
    LoadTable<Code::kEntries, From>(static_cast<const char*>(codebook) + row * Code::kEntries, table_.words);
    if constexpr (Code::kMemory > 0) {
#pragma unroll
      for (int i = 0; i < Code::kEntries / 4; ++i) table_.words[Code::kEntries / 2 - 1 - i] = Mirrored(table_.words[i]);
    }
#pragma unroll
    for (uint32_t& word : table_.words) word ^= 0x80808080;  // 128 more, so that no entry is negative
  }

  SKIM_DEVICE void Decode(const uint32_t (&word)[Code::kBits], int pair, uint32_t (&halves)[2][2]) const {
    uint32_t entries[2];  // of lanes 0, 1 and 2, 3, with the pair's codes in turn
    table_.LookUp(CodeNibbles<Code>(word, pair), entries);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      halves[0][i] = ElementPair<Element>::template Centered<8>(entries[i], 0x4240);
      halves[1][i] = ElementPair<Element>::template Centered<8>(entries[i], 0x4341);
    }
  }

 private:
  ByteTable<Code::kLevelBits> table_;
};

// A word of a codebook's entries as elements: four of int8, or two of float16.
template <bool kInt8, typename Element>
SKIM_DEVICE void ToElements(uint32_t word, uint32_t (&elements)[kInt8 ? 2 : 1]) {
  if constexpr (kInt8) {
    word ^= 0x80808080;  // 128 more, so that no entry is negative
    elements[0] = ElementPair<Element>::template Centered<8>(word, 0x4140);
    elements[1] = ElementPair<Element>::template Centered<8>(word, 0x4342);
  } else {
    elements[0] = ElementPair<Element>::FromHalves(word);
  }
}

// Codebooks up to 4 bits whose entries are elements of two bytes: a table of low bytes and one of high bytes.
template <bool kInt8, typename Code, typename Element>
class RegisterElements {
 public:
  static constexpr bool kInMemory = false;
  static constexpr int kTogether = 2;
  static constexpr bool kInOrder = Code::kMemory > 0 && std::is_same_v<Element, Bfloat16>;

  template <typename From = FromGlobal>
  SKIM_DEVICE void Prepare(const void* codebook, int64_t row, const char*, int) {
    constexpr int kWords = ByteTable<Code::kLevelBits>::kWords, kOfWord = kInt8 ? 2 : 1;
    constexpr int kBytes = (kInt8 ? 1 : 2) * Code::kEntries;
    uint32_t words[2 * kWords / kOfWord], elements[2 * kWords];
    LoadTable<kBytes, From>(static_cast<const char*>(codebook) + row * kBytes, words);
#pragma unroll
    for (int i = 0; i < 2 * kWords / kOfWord; ++i) {
      uint32_t some[kOfWord];
      ToElements<kInt8, Element>(words[i], some);
#pragma unroll
      for (int k = 0; k < kOfWord; ++k) elements[kOfWord * i + k] = some[k];
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      low_.words[i] = Permute(elements[2 * i], elements[2 * i + 1], 0x6420);
      high_.words[i] = Permute(elements[2 * i], elements[2 * i + 1], 0x7531);
    }
    if constexpr (Code::kMemory > 0) {
#pragma unroll
      for (int i = 0; i < Code::kEntries / 4; ++i) {
        low_.words[Code::kEntries / 2 - 1 - i] = Permute(low_.words[i], 0, 0x0123);
        high_.words[Code::kEntries / 2 - 1 - i] = Permute(high_.words[i] ^ 0x80808080, 0, 0x0123);  // with the sign
      }
    }
  }

  SKIM_DEVICE void Decode(const uint32_t (&word)[Code::kBits], int pair, uint32_t (&halves)[2][2]) const {
    const uint32_t codes = CodeNibbles<Code>(word, pair);
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
  ByteTable<Code::kLevelBits> low_, high_;
};

// Codebooks of 5 bits and more, both types. In shared memory they are elements, entry by entry, and of each for each of
// the 32 threads of a warp those of its rows g and g + 8: a thread reads its own bank.
template <bool kInt8, typename Code, Place kPlace, typename Element>
class MemoryTable {
 public:
  static constexpr bool kInMemory = true;
  static constexpr int kTogether = 1;
  static constexpr bool kInOrder = true;

  // Fills the tables of a thread's rows g and g + 8, all of them by kWarps warps together.
  template <int kWarps>
  static SKIM_DEVICE void Fill(const RowRun& run, const int64_t (&rows)[2], char* shared) {
    constexpr int kOfWarp = (1 << Code::kLevelBits) / kWarps, kBytes = kOfWarp * kEntryBytes;
    const int first = threadIdx.x / 32 * kOfWarp;
    const bool upper = Code::kMemory > 0 && first >= Code::kEntries;
    const int stored = upper ? 2 * Code::kEntries - first - kOfWarp : first;
    uint32_t words[2][kBytes / 4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      LoadTable<kBytes>(static_cast<const char*>(run.codebook) + (rows[h] * Code::kEntries + stored) * kEntryBytes,
                        words[h]);
      if (upper) Mirror(words[h]);
    }
    auto* to = reinterpret_cast<uint32_t*>(shared + kDistance * first) + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kOfWarp; i += 4 / kEntryBytes) {
      uint32_t entries[4 / kEntryBytes];
      Merge(words[0][i * kEntryBytes / 4], words[1][i * kEntryBytes / 4], entries);
#pragma unroll
      for (int k = 0; k < 4 / kEntryBytes; ++k) to[kDistance / 4 * (i + k)] = entries[k];
    }
  }

  // `half`: 0 for row g, 1 for row g + 8.
  template <typename From = FromGlobal>
  SKIM_DEVICE void Prepare(const void* codebook, int64_t row, const char* shared, int half) {
    if constexpr (kPlace == Place::kCache) {
      table_ = static_cast<const char*>(codebook);
      first_ = static_cast<uint32_t>(row) * Code::kEntries;
    } else {
      table_ = shared + 2 * half;
      first_ = 4 * (threadIdx.x % 32);
    }
  }

  SKIM_DEVICE void Decode(const uint32_t (&word)[Code::kBits], int j, uint32_t (&halves)[1][2]) const {
    const uint32_t codes = CodeBytes<Code>(word, j), stored = kMirrored ? Stored(codes) : codes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t two = LookUp(stored, 2 * i) | LookUp(stored, 2 * i + 1) << 16;
      if constexpr (kPlace != Place::kCache) {
        halves[0][i] = two;
      } else if constexpr (kInt8) {
        halves[0][i] = ElementPair<Element>::CenteredBytes(two ^ 0x800080);
      } else {
        halves[0][i] = ElementPair<Element>::FromHalves(two);
      }
      if constexpr (kMirrored) halves[0][i] ^= Permute(TopBits(codes), 0, i == 0 ? 0x1404 : 0x3424) & 0x80008000;
    }
  }

 private:
  static constexpr int kEntryBytes = kInt8 ? 1 : 2;
  static constexpr int kDistance = EntryDistance(kPlace);
  // Whether the lower half of the levels of windows is all that there is to look up; elements have the sign.
  static constexpr bool kMirrored = Code::kMemory > 0 && kPlace == Place::kCache;

  // The top bit of each window as that of its byte, beside other bits.
  static SKIM_DEVICE uint32_t TopBits(uint32_t windows) { return windows << (8 - Code::kLevelBits); }

  // The windows whose levels are stored: of those of the upper half all bits are turned.
  static SKIM_DEVICE uint32_t Stored(uint32_t windows) {
    const uint32_t upper = windows >> (Code::kLevelBits - 1) & 0x01010101;
    return windows ^ upper * ((1 << Code::kLevelBits) - 1);
  }

  // Entries to their negatives in reversed order.
  template <int kWords>
  static SKIM_DEVICE void Mirror(uint32_t (&words)[kWords]) {
    uint32_t mirrored[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) mirrored[kWords - 1 - i] = kInt8 ? Mirrored(words[i]) : MirroredHalves(words[i]);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = mirrored[i];
  }

  // A word of entries of each of two rows, as elements of one row and the other.
  static SKIM_DEVICE void Merge(uint32_t a, uint32_t b, uint32_t (&elements)[4 / kEntryBytes]) {
    constexpr int kOfWord = 2 / kEntryBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t two = kInt8 ? Permute(a, b, i == 0 ? 0x5140 : 0x7362) : Permute(a, b, i == 0 ? 0x5410 : 0x7632);
      uint32_t some[kOfWord];
      ToElements<kInt8, Element>(two, some);
#pragma unroll
      for (int k = 0; k < kOfWord; ++k) elements[kOfWord * i + k] = some[k];
    }
  }

  // The entry of byte i of `codes`: in the cache as the codebook has it, else an element.
  SKIM_DEVICE uint32_t LookUp(uint32_t codes, int i) const {
    const uint32_t code = codes >> 8 * i & 0xff;
    if constexpr (kPlace == Place::kCache) {
      const uint32_t entry = first_ + code;
      if constexpr (kInt8) return Load(reinterpret_cast<const uint8_t*>(table_) + entry);
      return Load(reinterpret_cast<const uint16_t*>(table_) + entry);
    } else if constexpr (kPlace == Place::kShared) {
      return *reinterpret_cast<const uint16_t*>(table_ + (first_ + 128 * code));
    } else {
      return *reinterpret_cast<const uint16_t*>(table_ + Permute(codes, first_, 0x5504 + 16 * i));  // 256 code + first_
    }
  }

  const char* table_;  // of all rows, so that only one address has 64 bits
  uint32_t first_;     // of this thread: bytes in shared memory; else of this row: entries
};

template <typename Code, Place kPlace, typename Element>
class Levels<LevelKind::kTableInt8, Code, kPlace, Element>
    : public std::conditional_t<Code::kLevelBits <= kMaxRegisterBits,
                                std::conditional_t<HasElements<Element>(Code::kLevelBits),
                                                   RegisterElements<true, Code, Element>, RegisterBytes<Code, Element>>,
                                MemoryTable<true, Code, kPlace, Element>> {};

template <typename Code, Place kPlace, typename Element>
class Levels<LevelKind::kTableFloat16, Code, kPlace, Element>
    : public std::conditional_t<InRegisters(Code::kLevelBits, Code::kMemory, false),
                                RegisterElements<false, Code, Element>, MemoryTable<false, Code, kPlace, Element>> {};

// Even levels: code - 2^(bits - 1).
template <typename Code, Place kPlace, typename Element>
class Levels<LevelKind::kAffine, Code, kPlace, Element> {
 public:
  static constexpr bool kInMemory = false;
  static constexpr int kTogether = 2;
  static constexpr bool kInOrder = false;

  template <typename From = FromGlobal>
  SKIM_DEVICE void Prepare(const void*, int64_t, const char*, int) {}

  SKIM_DEVICE void Decode(const uint32_t (&word)[Code::kBits], int pair, uint32_t (&halves)[2][2]) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t codes = CodeBytes<Code>(word, PairFirst(Code::kBits, pair) + k * PairDistance(Code::kBits));
      halves[k][0] = ElementPair<Element>::template Centered<Code::kBits>(codes, 0x4140);
      halves[k][1] = ElementPair<Element>::template Centered<Code::kBits>(codes, 0x4342);
    }
  }
};

// What a row's product, of levels as `Levels` gives them, becomes: product * scale + offset * (sum of x).
struct RowScale {
  float scale, offset;
};

// The same as it is stored; anything where a kind has none.
struct StoredScale {
  uint16_t scale, offset;
};

SKIM_DEVICE StoredScale LoadStoredScale(LevelKind kind, const RowRun& run, int64_t row) {
  const bool affine = kind == LevelKind::kAffine;
  if (kind == LevelKind::kTableFloat16) return {};
  const uint16_t* from = run.row_scale + (affine ? 2 * row : row);
  return {Load(from), Load(from + affine)};
}

SKIM_DEVICE RowScale ToRowScale(LevelKind kind, StoredScale stored, float column_unit) {
  if (kind == LevelKind::kTableFloat16) return {column_unit, 0};
  return {HalfToFloat(stored.scale) * column_unit,
          kind == LevelKind::kAffine ? HalfToFloat(stored.offset) * column_unit : 0};
}

SKIM_DEVICE RowScale LoadRowScale(LevelKind kind, const RowRun& run, int64_t row, float column_unit) {
  return ToRowScale(kind, LoadStoredScale(kind, run, row), column_unit);
}

static constexpr LevelKind KindOf(int row_class, CodebookType codebook) {
  if (IsAffine(row_class)) return LevelKind::kAffine;
  return codebook == CodebookType::kInt8 ? LevelKind::kTableInt8 : LevelKind::kTableFloat16;
}

// Calls body(kind, code) for the rows of a class: their kind as a constant, and a `RowCode`.
template <LevelKind kTable, typename Body>
SKIM_DEVICE void WithLevels(int row_class, Body&& body) {
#define SKIM_CASE(kind, bits)                       \
  case 8 * (kind == LevelKind::kAffine) + bits - 1: \
    return body(std::integral_constant<LevelKind, kind>{}, RowCode<bits>{});
#define SKIM_WINDOW_CASE(i)                                  \
  case kPlainClasses + i:                                    \
    return body(std::integral_constant<LevelKind, kTable>{}, \
                RowCode<ClassBits(kPlainClasses + i), ClassMemory(kPlainClasses + i)>{});
#define SKIM_CASES(kind) \
  SKIM_CASE(kind, 1)     \
  SKIM_CASE(kind, 2)     \
  SKIM_CASE(kind, 3) SKIM_CASE(kind, 4) SKIM_CASE(kind, 5) SKIM_CASE(kind, 6) SKIM_CASE(kind, 7) SKIM_CASE(kind, 8)
  switch (row_class) {
    SKIM_CASES(kTable)
    SKIM_CASES(LevelKind::kAffine)
    SKIM_WINDOW_CASE(0)
    SKIM_WINDOW_CASE(1)
    SKIM_WINDOW_CASE(2)
    SKIM_WINDOW_CASE(3)
    SKIM_WINDOW_CASE(4)
    SKIM_WINDOW_CASE(5)
  }
#undef SKIM_WINDOW_CASE
#undef SKIM_CASES
#undef SKIM_CASE
}

}  // namespace skim::cuda
