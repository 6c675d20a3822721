// What the AVX-512 kernels share: codes, 64 at a time, tables of bytes, activations, and the ends of rows. They are for
// CPUs that also have VBMI and VNNI (Intel since Ice Lake, AMD since Zen 4).
//
// Codes come in groups of 64, in the order of their columns: the codes j and j + 1 of a superblock's 32 lanes.
// _mm512_multishift_epi64_epi8 takes every byte from any bit of its 64, so a field of all 64 codes is in its place
// after one instruction; _mm512_permutexvar_epi8 looks up 64 codes of up to 6 bits in one instruction and ignores what
// lies above those bits, so nothing needs to be masked.
//
// The files that include this one are compiled for AVX-512 as a whole. So nothing in it, or in them, may have external
// linkage but the functions that they are there for (see avx2.h).
#pragma once

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "row.h"
#include "skim/kernels.h"

namespace skim {

Arithmetic Avx512Integer();  // avx512_integer.cpp

namespace {

constexpr int kGroup = 64;  // columns that are looked up at once

// ---- codes

// Byte c of `Control(shift)` selects, of 64 bits, the 8 from bit 8 c + shift on, around the end.
constexpr uint64_t Control(int shift) {
  uint64_t control = 0;
  for (int byte = 0; byte < 8; ++byte) control |= static_cast<uint64_t>((8 * byte + shift) & 63) << (8 * byte);
  return control;
}

SKIM_INLINE __m512i Load(const void* p) { return _mm512_loadu_si512(p); }

SKIM_INLINE __m512i BothHalves(const uint8_t* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

SKIM_INLINE __m512i Select(__m512i mask, __m512i one, __m512i other) {  // bitwise: mask ? one : other
  return _mm512_ternarylogic_epi32(one, other, mask, 0xe4);
}

// Field i of code j, or the first one if it has fewer.
template <typename Code>
constexpr Field FieldOrFirst(int j, int i) {
  return Code::FieldAt(j, i < Code::Fields(j) ? i : 0);
}

// The bits of code j that are those of the fields before field i.
template <typename Code>
constexpr int BitsBefore(int j, int i) {
  return i < Code::Fields(j) ? (1 << Code::FieldAt(j, i).code_bit) - 1 : 0xff;
}

SKIM_INLINE __m512i Halves(const uint8_t* low, const uint8_t* high) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)), 1);
}

// Field kI of the codes 2 kPair and 2 kPair + 1 of 32 lanes, in its place within the code; other bits are of no
// meaning.
template <typename Code, int kPair, int kI>
SKIM_INLINE __m512i FieldOf(const uint8_t* p) {
  constexpr Field a = FieldOrFirst<Code>(2 * kPair, kI), b = FieldOrFirst<Code>(2 * kPair + 1, kI);
  constexpr int shift_a = a.bit - a.code_bit, shift_b = b.bit - b.code_bit;
  const __m512i bits = a.vector == b.vector       ? BothHalves(p + a.vector * kLanes)
                       : a.vector + 1 == b.vector ? Load(p + a.vector * kLanes)
                                                  : Halves(p + a.vector * kLanes, p + b.vector * kLanes);
  if constexpr (shift_a == 0 && shift_b == 0) return bits;
  constexpr auto ca = static_cast<long long>(Control(shift_a)), cb = static_cast<long long>(Control(shift_b));
  return _mm512_multishift_epi64_epi8(_mm512_setr_epi64(ca, ca, ca, ca, cb, cb, cb, cb), bits);
}

// Codes from their fields: the lowest bits from the first. There are kFields at most, and `before(i)` tells which bits
// are those of fields before field i.
template <int kFields, typename FieldAt, typename Before>
SKIM_INLINE __m512i FromFields(FieldAt&& field, Before&& before) {
  using std::integral_constant;
  __m512i codes = field(integral_constant<int, 0>());
  if constexpr (kFields > 1) {
    constexpr integral_constant<int, 1> i;
    codes = Select(before(i), codes, field(i));
  }
  if constexpr (kFields > 2) {
    constexpr integral_constant<int, 2> i;
    codes = Select(before(i), codes, field(i));
  }
  return codes;
}

constexpr int Most(int a, int b) { return a > b ? a : b; }

// The codes 2 kPair and 2 kPair + 1 of 32 lanes.
template <typename Code, int kPair>
SKIM_INLINE __m512i PairOf(const uint8_t* p) {
  return FromFields<Most(Code::Fields(2 * kPair), Code::Fields(2 * kPair + 1))>(
      [&](auto i) __attribute__((always_inline)) { return FieldOf<Code, kPair, decltype(i)::value>(p); },
      [](auto i) __attribute__((always_inline)) {
        constexpr int kI = decltype(i)::value;
        constexpr auto a = static_cast<char>(BitsBefore<Code>(2 * kPair, kI));
        constexpr auto b = static_cast<char>(BitsBefore<Code>(2 * kPair + 1, kI));
        return a == b ? _mm512_set1_epi8(a) : _mm512_inserti64x4(_mm512_set1_epi8(a), _mm256_set1_epi8(b), 1);
      });
}

// Code of byte `byte` of group `group` of a dense superblock.
constexpr int DenseCode(int lanes, int group, int byte) { return (group * kGroup + byte) / lanes; }

// Where the quadwords of a field of a group come from: the first vector that is read, and of those behind it the
// quadword and the bits; and the bits of the fields before it.
struct DenseMap {
  int first;
  alignas(64) int64_t quadword[8];
  alignas(64) uint64_t control[8];
  alignas(64) uint64_t before[8];
};

template <typename Code>
constexpr DenseMap MakeDenseMap(int lanes, int group, int i) {
  DenseMap map{kLanes, {}, {}, {}};
  for (int q = 0; q < 8; ++q) {
    const Field f = FieldOrFirst<Code>(DenseCode(lanes, group, 8 * q), i);
    if (f.vector < map.first) map.first = f.vector;
  }
  const int per_vector = lanes / 8;
  for (int q = 0; q < 8; ++q) {
    const int j = DenseCode(lanes, group, 8 * q);
    const Field f = FieldOrFirst<Code>(j, i);
    map.quadword[q] = (f.vector - map.first) * per_vector + q % per_vector;
    map.control[q] = Control(f.bit - f.code_bit);
    map.before[q] = 0x0101010101010101u * static_cast<uint64_t>(BitsBefore<Code>(j, i));
  }
  return map;
}

// The most fields of a code of a group.
template <typename Code>
constexpr int DenseFields(int lanes, int group) {
  int most = 0;
  for (int byte = 0; byte < kGroup; byte += 8) most = Most(most, Code::Fields(DenseCode(lanes, group, byte)));
  return most;
}

// Field kI of the codes of group kGroupIndex of a dense superblock.
template <typename Code, int kDenseLanes, int kGroupIndex, int kI>
SKIM_INLINE __m512i DenseFieldOf(const uint8_t* p) {
  static constexpr DenseMap map = MakeDenseMap<Code>(kDenseLanes, kGroupIndex, kI);
  // No more than the superblock: what lies behind the row is not ours to read.
  constexpr int quadwords = (Code::kBits - map.first) * kDenseLanes / 8;
  constexpr auto mask = static_cast<__mmask8>(quadwords < 8 ? (1 << quadwords) - 1 : 0xff);
  const __m512i vectors = _mm512_maskz_loadu_epi64(mask, p + map.first * kDenseLanes);
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(map.control),
                                      _mm512_permutexvar_epi64(_mm512_load_si512(map.quadword), vectors));
}

template <typename Code, int kDenseLanes, int kGroupIndex>
SKIM_INLINE __m512i DenseCodesOf(const uint8_t* p) {
  return FromFields<DenseFields<Code>(kDenseLanes, kGroupIndex)>(
      [&](auto i) __attribute__((always_inline)) {
        return DenseFieldOf<Code, kDenseLanes, kGroupIndex, decltype(i)::value>(p);
      },
      [](auto i) __attribute__((always_inline)) {
        static constexpr DenseMap map = MakeDenseMap<Code>(kDenseLanes, kGroupIndex, decltype(i)::value);
        return _mm512_load_si512(map.before);
      });
}

template <typename Code>
__attribute__((noinline)) void DenseCodes(const uint8_t* p, int lanes, __m512i* codes) {
  if (lanes == 8) {
    codes[0] = DenseCodesOf<Code, 8, 0>(p);
  } else {
    codes[0] = DenseCodesOf<Code, 16, 0>(p);
    codes[1] = DenseCodesOf<Code, 16, 1>(p);
  }
}

// Rows are short beside what the hardware's prefetcher needs to see of a stream, so we help it. Short rows are wanted
// in the L1 cache soon; long ones are fetched by about four rows ahead, and into the L2 cache, which can wait for more
// lines at once. It does not matter what lies there.
constexpr int64_t kLeastAhead = 2048, kMostAhead = 6144;  // bytes

constexpr int64_t PrefetchAhead(int64_t row_bytes) {
  return 4 * row_bytes < kLeastAhead ? kLeastAhead : Min(4 * row_bytes, kMostAhead);
}

SKIM_INLINE void Prefetch(const uint8_t* p, int64_t bytes, int64_t ahead) {
  for (int64_t line = ahead; line < ahead + bytes; line += 64) {
    if (ahead > kLeastAhead) {
      _mm_prefetch(reinterpret_cast<const char*>(p) + line, _MM_HINT_T1);
    } else {
      _mm_prefetch(reinterpret_cast<const char*>(p) + line, _MM_HINT_T0);
    }
  }
}

// Hands the codes, or windows, of the superblocks begin..end of kRows rows to `sink(codes, parity)`, 64 of each at a
// time, in an array of registers; `parity` is 0 and 1 in turn, a constant of the compiler. Only the lowest kLevelBits
// bits count.
template <typename Code, int kRows, typename Sink>
SKIM_INLINE void EachCodesOf(const uint8_t* const (&rows)[kRows], int64_t K, int64_t begin, int64_t end, Sink&& sink) {
  constexpr int kBits = Code::kBits;
  constexpr std::integral_constant<int, 0> even;
  constexpr std::integral_constant<int, 1> odd;
  const int64_t ahead = PrefetchAhead(RowBytes(kBits, K));
  const int64_t full = Min(K / kSuperblockColumns, end);
  const int lanes = full < end ? TailLanes(K) : 0;
  const uint8_t* p[kRows];
  for (int r = 0; r < kRows; ++r) p[r] = rows[r] + begin * kBits * kLanes;
  const auto pair = [&](auto index, auto parity) __attribute__((always_inline)) {
    __m512i codes[kRows];
    for (int r = 0; r < kRows; ++r) codes[r] = PairOf<Code, decltype(index)::value>(p[r]);
    sink(codes, parity);
  };
  const auto superblock = [&]() __attribute__((always_inline)) {
    pair(std::integral_constant<int, 0>(), even);
    pair(std::integral_constant<int, 1>(), odd);
    pair(std::integral_constant<int, 2>(), even);
    pair(std::integral_constant<int, 3>(), odd);
  };
  for (int64_t block = begin; block < full; ++block) {
    for (int r = 0; r < kRows; ++r) Prefetch(p[r], kBits * kLanes, ahead);
    superblock();
    for (int r = 0; r < kRows; ++r) p[r] += kBits * kLanes;
  }
  if (lanes == 0) return;
  if (TailIsDense(lanes)) {
    __m512i dense[kRows][2];
    for (int r = 0; r < kRows; ++r) DenseCodes<Code>(p[r], lanes, dense[r]);
    for (int i = 0; i < lanes / 8; ++i) {
      __m512i codes[kRows];
      for (int r = 0; r < kRows; ++r) codes[r] = dense[r][i];
      sink(codes, even);
    }
  } else {
    uint8_t spread[kRows][kBits * kLanes] = {};
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kBits; ++i) std::memcpy(spread[r] + i * kLanes, p[r] + i * lanes, lanes);
      p[r] = spread[r];
    }
    superblock();
  }
}

// The same of one row, as a register.
template <typename Code, typename Sink>
SKIM_INLINE void EachCodes(const uint8_t* row, int64_t K, int64_t begin, int64_t end, Sink&& sink) {
  const uint8_t* const rows[1] = {row};
  EachCodesOf<Code>(rows, K, begin, end, [&](const __m512i(&codes)[1], auto parity) __attribute__((always_inline)) {
    sink(codes[0], parity);
  });
}

// ---- levels as bytes

// A row's int8 codebook, looked up 64 codes at a time; only the lowest kBits bits of a code count.
template <int kBits>
struct ByteTable {
  static constexpr int kRegisters = kBits <= 6 ? 1 : 1 << (kBits - 6);
  __m512i tables[kRegisters];

  SKIM_INLINE explicit ByteTable(const int8_t* entries) {
    if constexpr (kBits < 4) {
      int64_t word = 0;
      std::memcpy(&word, entries, 1 << kBits);
      tables[0] = kBits == 1   ? _mm512_set1_epi16(static_cast<int16_t>(word))
                  : kBits == 2 ? _mm512_set1_epi32(static_cast<int32_t>(word))
                               : _mm512_set1_epi64(word);
    } else if constexpr (kBits == 4) {
      tables[0] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
    } else if constexpr (kBits == 5) {
      tables[0] = BothHalves(reinterpret_cast<const uint8_t*>(entries));
    } else {
      for (int i = 0; i < kRegisters; ++i) tables[i] = Load(entries + kGroup * i);
    }
  }

  SKIM_INLINE __m512i operator()(__m512i codes) const {
    if constexpr (kBits <= 6) return _mm512_permutexvar_epi8(codes, tables[0]);
    const __m512i lower = _mm512_permutex2var_epi8(tables[0], codes, tables[1]);
    if constexpr (kBits == 7) return lower;
    if constexpr (kBits == 8) {
      const __m512i upper = _mm512_permutex2var_epi8(tables[2], codes, tables[3]);
      return _mm512_mask_mov_epi8(lower, _mm512_movepi8_mask(codes), upper);
    }
  }
};

template <int kBits>
SKIM_INLINE __m512i CleanCodes(__m512i codes) {
  return kBits == 8 ? codes : _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1)));
}

// ---- activations

// Token m of x as PaddedColumns(K) floats, multiplied by the column scale, in the order of the columns.
void ScaleToken(const Layer& layer, const void* x, FloatType type, int64_t m, float* out) {
  const int64_t K = layer.weights.K;
  const uint16_t* scale = ColumnScale(layer);
  EachStretch(K, [&](int64_t first, int64_t present, int64_t columns) {
    for (int64_t k = 0; k < columns; k += 16) {
      const int64_t left = present - k;
      const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1);
      const int64_t column = m * K + first + k;
      __m512 values = type == FloatType::kFloat32
                          ? _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + column)
                          : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + column));
      if (scale) values = _mm512_mul_ps(values, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, scale + first + k)));
      _mm512_store_ps(out + k, values);
    }
    out += columns;
  });
}

// ---- tiles of up to 16 rows

constexpr int64_t kTileRows = 16;
constexpr int kMicroRows = 4;  // that a micro kernel multiplies with several tokens

constexpr __mmask16 FirstLanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

// `MakeRowEnd` of up to 16 rows at once.
struct RowEnds {
  alignas(64) float scale[kTileRows];
  alignas(64) float offset[kTileRows];
  alignas(64) float bias[kTileRows];
  alignas(64) int32_t zero[kTileRows];  // what the kernel's unsigned levels are too large by
  alignas(64) int32_t n[kTileRows];     // original rows
  int64_t count;
  bool consecutive;  // the original rows

  RowEnds(const Layer& layer, int64_t begin, int64_t rows) : count(rows), consecutive(layer.destination == nullptr) {
    EachRun(layer, begin, rows, [&](const RowRun& run, int64_t row, int64_t of_run, int64_t at) {
      const __mmask16 mask = FirstLanes(of_run);
      __m512 scales = _mm512_set1_ps(1.0f), offsets = _mm512_setzero_ps();
      if (IsAffine(run.row_class)) {
        const __m512i pairs = _mm512_maskz_loadu_epi32(mask, run.row_scale + 2 * row);
        scales = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
        offsets = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
      } else if (run.row_scale) {
        scales = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, run.row_scale + row));
      }
      _mm512_mask_storeu_ps(scale + at, mask, scales);
      _mm512_mask_storeu_ps(offset + at, mask, offsets);
      const int of_class = IsAffine(run.row_class) ? 1 << (ClassBits(run.row_class) - 1) : 128;
      _mm512_mask_storeu_epi32(zero + at, mask, _mm512_set1_epi32(of_class));
    });
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 mask = FirstLanes(rows);
    const __m512i original = layer.destination ? _mm512_maskz_loadu_epi32(mask, layer.destination + begin)
                                               : _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(begin)));
    _mm512_store_si512(n, original);
    __m512 biases = _mm512_setzero_ps();
    if (layer.weights.bias.size) {
      biases = _mm512_mask_i32gather_ps(biases, mask, original, layer.weights.bias.data, sizeof(float));
    }
    _mm512_store_ps(bias, biases);
  }

  // Writes the results of one token, `scale` its own, for products [16] of the rows; `y` is the token's.
  SKIM_INLINE void Store(__m512 products, float token_scale, float token_sum, void* y, FloatType type) const {
    const __m512 scales = _mm512_mul_ps(_mm512_load_ps(scale), _mm512_set1_ps(token_scale));
    const __m512 rest =
        _mm512_add_ps(_mm512_mul_ps(_mm512_load_ps(offset), _mm512_set1_ps(token_sum)), _mm512_load_ps(bias));
    const __m512 results = _mm512_add_ps(_mm512_mul_ps(products, scales), rest);
    const __mmask16 mask = FirstLanes(count);
    const __m256i halves = _mm512_cvtps_ph(results, _MM_FROUND_TO_NEAREST_INT);
    if (consecutive) {
      if (type == FloatType::kFloat32) {
        _mm512_mask_storeu_ps(static_cast<float*>(y) + n[0], mask, results);
      } else {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y) + n[0], mask, halves);
      }
      return;
    }
    if (type == FloatType::kFloat32) {
      alignas(64) float values[kTileRows];
      _mm512_store_ps(values, results);
      for (int64_t r = 0; r < count; ++r) static_cast<float*>(y)[n[r]] = values[r];
    } else {
      alignas(64) uint16_t values[kTileRows];
      _mm256_store_si256(reinterpret_cast<__m256i*>(values), halves);
      for (int64_t r = 0; r < count; ++r) static_cast<uint16_t*>(y)[n[r]] = values[r];
    }
  }
};

// The sums of up to 16 rows, each in the lanes of a register that are yet to be added up. What lies in the places of
// rows that there are none of does not matter.
template <typename T>
struct Lanes {
  alignas(64) T of_row[kTileRows][16];
};

SKIM_INLINE void PrefetchBytes(const void* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(static_cast<const char*>(p) + line, _MM_HINT_T0);
}

// What is read of up to 16 rows beside their codes. Short streams, too, and a row can't begin without its codebook.
void PrefetchRows(const Layer& layer, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t rows = Min(end - begin, kTileRows);
  const int entry = layer.weights.codebook_type == CodebookType::kInt8 ? 1 : 2;
  EachRun(layer, begin, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t) {
    const int64_t bytes = CodebookEntries(run.row_class) * entry;
    if (run.codebook) PrefetchBytes(static_cast<const char*>(run.codebook) + row * bytes, count * bytes);
    if (run.row_scale) PrefetchBytes(run.row_scale + (run.codebook ? row : 2 * row), count * (run.codebook ? 2 : 4));
  });
  if (layer.destination) PrefetchBytes(layer.destination + begin, rows * 4);
}

// The same for the first rows of a range, with the codes that `EachCodes` does not prefetch.
void PrefetchRange(const Layer& layer, int64_t begin, int64_t end) {
  PrefetchRows(layer, begin, end);
  PrefetchRows(layer, begin + kTileRows, end);
  const RowRun* run = RunOf(layer.runs, begin);
  const int64_t row_bytes = RowBytes(ClassBits(run->row_class), layer.weights.K);
  PrefetchBytes(run->codes + (begin - run->first) * row_bytes, kLeastAhead);
}

// Calls body(first row, rows) for the tiles of rows begin..end.
template <typename Body>
SKIM_INLINE void EachTile(const Layer& layer, int64_t begin, int64_t end, Body&& body) {
  if (begin == end) return;  // no run has the row `begin` then
  PrefetchRange(layer, begin, end);
  for (int64_t first = begin; first < end; first += kTileRows) {
    PrefetchRows(layer, first + 2 * kTileRows, end);
    body(first, Min(end - first, kTileRows));
  }
}

}  // namespace
}  // namespace skim
