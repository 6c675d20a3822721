// The AVX-512 kernels, for CPUs that also have VBMI and VNNI (Intel since Ice Lake, AMD since Zen 4).
//
// Codes come 64 at a time, in the order of their columns: the codes j and j + 1 of a superblock's 32 lanes.
// _mm512_multishift_epi64_epi8 takes every byte from any bit of its 64, so a field of all 64 codes is in its place
// after one instruction; _mm512_permutexvar_epi8 looks up 64 codes of up to 6 bits in one instruction and ignores what
// lies above those bits, so nothing needs to be masked.
//
//     integer: levels as unsigned bytes times the two digits of the activations, _mm512_dpbusd_epi32
//     exact: up to 4 bits, shifted into their places in 32-bit lanes, codes are looked up as floats; int8 levels of
//            other widths are widened
//
// 32-bit lane d of byte b holds column 4 d + b of each 64. In exact arithmetic activations are prepared in that order,
// `kChunk` floats for 64 columns. A last superblock of 8 or 16 lanes is dense, 64 or 128 columns; one of another size
// is spread out to 32 lanes, of which those that do not exist have activations of 0.
//
// This file is compiled for AVX-512 as a whole. So nothing in it may have external linkage but `Avx512Kernels`.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "integer.h"
#include "skim/kernels.h"
#include "swiglu.h"

#define SKIM_INLINE inline __attribute__((always_inline))

namespace skim {
namespace {

constexpr int kChunk = 64;  // columns that are looked up at once

// ---- order of the columns

constexpr bool TailIsDense(int lanes) { return lanes == 8 || lanes == 16; }
constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t Superblocks(int64_t K) { return CeilDiv(K, kSuperblockColumns); }

// Columns, spread ones included, of the superblocks before `block`; a multiple of kChunk.
constexpr int64_t ColumnsBefore(int64_t K, int64_t block) {
  const bool dense_tail = TailIsDense(TailLanes(K)) && block == Superblocks(K);
  return dense_tail ? (block - 1) * kSuperblockColumns + 8 * TailLanes(K) : block * kSuperblockColumns;
}

constexpr int64_t PaddedColumns(int64_t K) { return ColumnsBefore(K, Superblocks(K)); }

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

// Field kI of the codes 2 kPair and 2 kPair + 1 of 32 lanes, in its place within the code; other bits are of no
// meaning.
template <int kBits, int kPair, int kI>
SKIM_INLINE __m512i FieldOf(const uint8_t* p) {
  constexpr Field a = CodeField(kBits, 2 * kPair, kI), b = CodeField(kBits, 2 * kPair + 1, kI);
  constexpr int shift_a = a.bit - a.code_bit, shift_b = b.bit - b.code_bit;
  static_assert(a.vector == b.vector || a.vector + 1 == b.vector);
  const __m512i bits = a.vector == b.vector ? BothHalves(p + a.vector * kLanes) : Load(p + a.vector * kLanes);
  if constexpr (shift_a == 0 && shift_b == 0) return bits;
  constexpr auto ca = static_cast<long long>(Control(shift_a)), cb = static_cast<long long>(Control(shift_b));
  return _mm512_multishift_epi64_epi8(_mm512_setr_epi64(ca, ca, ca, ca, cb, cb, cb, cb), bits);
}

// A code from its fields: the lowest bits from the first.
template <int kBits, int kJ, typename Fields>
SKIM_INLINE __m512i FromFields(Fields&& field) {
  using std::integral_constant;
  __m512i codes = field(integral_constant<int, 0>());
  if constexpr (FieldCount(kBits, kJ) > 1) {
    constexpr int split = CodeField(kBits, kJ, 1).code_bit;
    codes = Select(_mm512_set1_epi8((1 << split) - 1), codes, field(integral_constant<int, 1>()));
  }
  if constexpr (FieldCount(kBits, kJ) > 2) {
    constexpr int split = CodeField(kBits, kJ, 2).code_bit;
    codes = Select(_mm512_set1_epi8((1 << split) - 1), codes, field(integral_constant<int, 2>()));
  }
  return codes;
}

// The codes 2 kPair and 2 kPair + 1 of 32 lanes.
template <int kBits, int kPair>
SKIM_INLINE __m512i PairOf(const uint8_t* p) {
  return FromFields<kBits, 2 * kPair>(
      [&](auto i) __attribute__((always_inline)) { return FieldOf<kBits, kPair, decltype(i)::value>(p); });
}

// Code of byte `byte` of chunk `chunk` of a dense superblock.
constexpr int DenseCode(int lanes, int chunk, int byte) { return (chunk * kChunk + byte) / lanes; }

// Where the quadwords of a field of a chunk come from: the first vector that is read, and of those behind it the
// quadword and the bits.
struct DenseMap {
  int first;
  alignas(64) int64_t quadword[8];
  alignas(64) uint64_t control[8];
};

constexpr DenseMap MakeDenseMap(int bits, int lanes, int chunk, int i) {
  DenseMap map{kLanes, {}, {}};
  for (int q = 0; q < 8; ++q) {
    const Field f = CodeField(bits, DenseCode(lanes, chunk, 8 * q), i);
    if (f.vector < map.first) map.first = f.vector;
  }
  const int per_vector = lanes / 8;
  for (int q = 0; q < 8; ++q) {
    const Field f = CodeField(bits, DenseCode(lanes, chunk, 8 * q), i);
    map.quadword[q] = (f.vector - map.first) * per_vector + q % per_vector;
    map.control[q] = Control(f.bit - f.code_bit);
  }
  return map;
}

// Field kI of the codes of chunk kChunkIndex of a dense superblock.
template <int kBits, int kDenseLanes, int kChunkIndex, int kI>
SKIM_INLINE __m512i DenseFieldOf(const uint8_t* p) {
  static constexpr DenseMap map = MakeDenseMap(kBits, kDenseLanes, kChunkIndex, kI);
  // No more than the superblock: what lies behind the row is not ours to read.
  constexpr int quadwords = (kBits - map.first) * kDenseLanes / 8;
  constexpr auto mask = static_cast<__mmask8>(quadwords < 8 ? (1 << quadwords) - 1 : 0xff);
  const __m512i vectors = _mm512_maskz_loadu_epi64(mask, p + map.first * kDenseLanes);
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(map.control),
                                      _mm512_permutexvar_epi64(_mm512_load_si512(map.quadword), vectors));
}

template <int kBits, int kDenseLanes, int kChunkIndex>
SKIM_INLINE __m512i DenseCodesOf(const uint8_t* p) {
  // The codes of a chunk have the same number of fields, but for 3 bits; there the first six have no second one, and
  // take their top bit from the first.
  constexpr int last = DenseCode(kDenseLanes, kChunkIndex, kChunk - 1);
  if constexpr (kBits != 3 || last < 6) {
    return FromFields<kBits, last>([&](auto i) __attribute__((always_inline)) {
      return DenseFieldOf<kBits, kDenseLanes, kChunkIndex, decltype(i)::value>(p);
    });
  } else {
    constexpr __mmask64 two = kDenseLanes == 8 ? ~__mmask64{0} << 48 : ~__mmask64{0} << 32;
    const __m512i low = DenseFieldOf<kBits, kDenseLanes, kChunkIndex, 0>(p);
    const __m512i top = DenseFieldOf<kBits, kDenseLanes, kChunkIndex, 1>(p);
    return _mm512_mask_mov_epi8(low, two, Select(_mm512_set1_epi8(3), low, top));
  }
}

template <int kBits>
__attribute__((noinline)) void DenseCodes(const uint8_t* p, int lanes, __m512i* codes) {
  if (lanes == 8) {
    codes[0] = DenseCodesOf<kBits, 8, 0>(p);
  } else {
    codes[0] = DenseCodesOf<kBits, 16, 0>(p);
    codes[1] = DenseCodesOf<kBits, 16, 1>(p);
  }
}

// Rows are short beside what the hardware's prefetcher needs to see of a stream, so we help it.
constexpr int kPrefetch = 2048;  // bytes ahead; it does not matter what lies there

// Hands the codes of the superblocks begin..end of a row to `sink(codes, parity)`, 64 at a time; `parity` is 0 and 1 in
// turn, a constant of the compiler. Only the lowest kBits bits of a code count.
template <int kBits, typename Sink>
SKIM_INLINE void EachCodes(const uint8_t* row, int64_t K, int64_t begin, int64_t end, Sink&& sink) {
  constexpr std::integral_constant<int, 0> even;
  constexpr std::integral_constant<int, 1> odd;
  const int64_t full = Min(K / kSuperblockColumns, end);
  const int lanes = full < end ? TailLanes(K) : 0;
  const uint8_t* p = row + begin * kBits * kLanes;
  const auto superblock = [&](const uint8_t* q) __attribute__((always_inline)) {
    sink(PairOf<kBits, 0>(q), even);
    sink(PairOf<kBits, 1>(q), odd);
    sink(PairOf<kBits, 2>(q), even);
    sink(PairOf<kBits, 3>(q), odd);
  };
  for (int64_t block = begin; block < full; ++block, p += kBits * kLanes) {
    for (int line = 0; line < kBits * kLanes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(p) + kPrefetch + line, _MM_HINT_T0);
    }
    superblock(p);
  }
  if (lanes == 0) return;
  if (TailIsDense(lanes)) {
    __m512i codes[2];
    DenseCodes<kBits>(p, lanes, codes);
    sink(codes[0], even);
    if (lanes == 16) sink(codes[1], odd);
  } else {
    uint8_t spread[kBits * kLanes] = {};
    for (int i = 0; i < kBits; ++i) std::memcpy(spread + i * kLanes, p + i * lanes, lanes);
    superblock(spread);
  }
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
      for (int i = 0; i < kRegisters; ++i) tables[i] = Load(entries + kChunk * i);
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

// Levels as unsigned bytes, `kZero` more than they are.
template <int kBits>
struct UnsignedTable {
  static constexpr int kWidth = kBits, kZero = 128;
  ByteTable<kBits> table;

  SKIM_INLINE UnsignedTable(const RowRun& run, int64_t row)
      : table(static_cast<const int8_t*>(run.codebook) + (row << kBits)) {
    for (__m512i& entries : table.tables) entries = _mm512_xor_si512(entries, _mm512_set1_epi8(-128));
  }
  SKIM_INLINE __m512i operator()(__m512i codes) const { return table(codes); }
};

template <int kBits>
struct UnsignedAffine {
  static constexpr int kWidth = kBits, kZero = 1 << (kBits - 1);

  SKIM_INLINE UnsignedAffine(const RowRun&, int64_t) {}
  SKIM_INLINE __m512i operator()(__m512i codes) const { return CleanCodes<kBits>(codes); }
};

// ---- levels as floats: 64 codes to 64 floats, 16 of each byte of the 32-bit lanes; `ScaleOf` makes them a row's.

struct Floats64 {
  __m512 v[4];
};

// 16 consecutive entries of a codebook, of which the first kCount are read; the others repeat them.
template <CodebookType kType, int kCount>
SKIM_INLINE __m512 LoadEntries(const void* codebook, int64_t entry) {
  __m512 floats;
  if constexpr (kType == CodebookType::kInt8) {
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, static_cast<const int8_t*>(codebook) + entry, kCount);
    floats = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  } else {
    __m256i halves = _mm256_setzero_si256();
    std::memcpy(&halves, static_cast<const uint16_t*>(codebook) + entry, 2 * kCount);
    floats = _mm512_cvtph_ps(halves);
  }
  if constexpr (kCount == 16) return floats;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(_mm512_and_si512(lane, _mm512_set1_epi32(kCount - 1)), floats);
}

// Free codebooks of up to 4 bits, and float16 ones of any width.
template <int kBits, CodebookType kType>
struct FloatTable {
  static constexpr int kWidth = kBits;
  static constexpr int kRegisters = kBits <= 4 ? 1 : 1 << (kBits - 4);
  __m512 tables[kRegisters];

  SKIM_INLINE FloatTable(const RowRun& run, int64_t row) {
    constexpr int count = kBits <= 4 ? 1 << kBits : 16;
    for (int i = 0; i < kRegisters; ++i) tables[i] = LoadEntries<kType, count>(run.codebook, (row << kBits) + 16 * i);
  }

  // Of the kCount registers from kFirst on.
  template <int kFirst, int kCount>
  SKIM_INLINE __m512 Lookup(__m512i codes) const {
    if constexpr (kCount == 1) return _mm512_permutexvar_ps(codes, tables[kFirst]);
    if constexpr (kCount == 2) return _mm512_permutex2var_ps(tables[kFirst], codes, tables[kFirst + 1]);
    if constexpr (kCount > 2) {
      return _mm512_mask_mov_ps(Lookup<kFirst, kCount / 2>(codes),
                                _mm512_test_epi32_mask(codes, _mm512_set1_epi32(8 * kCount)),
                                Lookup<kFirst + kCount / 2, kCount / 2>(codes));
    }
  }

  SKIM_INLINE Floats64 operator()(__m512i codes) const {
    return {{Lookup<0, kRegisters>(codes), Lookup<0, kRegisters>(_mm512_srli_epi32(codes, 8)),
             Lookup<0, kRegisters>(_mm512_srli_epi32(codes, 16)), Lookup<0, kRegisters>(_mm512_srli_epi32(codes, 24))}};
  }
};

// Signed bytes, widened.
SKIM_INLINE Floats64 Widen(__m512i bytes) {
  return {{_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 24), 24)),
           _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 16), 24)),
           _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 8), 24)),
           _mm512_cvtepi32_ps(_mm512_srai_epi32(bytes, 24))}};
}

template <int kBits>
struct WideTable {
  static constexpr int kWidth = kBits;
  ByteTable<kBits> table;

  SKIM_INLINE WideTable(const RowRun& run, int64_t row)
      : table(static_cast<const int8_t*>(run.codebook) + (row << kBits)) {}
  SKIM_INLINE Floats64 operator()(__m512i codes) const { return Widen(table(codes)); }
};

template <int kBits>
struct FloatAffine {
  static constexpr int kWidth = kBits;

  SKIM_INLINE FloatAffine(const RowRun&, int64_t) {}
  SKIM_INLINE Floats64 operator()(__m512i codes) const {
    return Widen(_mm512_sub_epi8(CleanCodes<kBits>(codes), _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1)))));
  }
};

// ---- the ends of up to 16 rows

constexpr int64_t kTileRows = 16;

constexpr __mmask16 FirstLanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

// Calls body(run, first row in it, rows, place among the rows) for the runs that rows begin..begin+rows belong to.
template <typename Body>
SKIM_INLINE void EachRun(const Layer& layer, int64_t begin, int64_t rows, Body&& body) {
  const RowRun* run = layer.runs;
  for (int64_t at = 0; at < rows;) {
    run = RunOf(run, begin + at);
    const int64_t row = begin + at - run->first, count = Min(rows - at, run->count - row);
    body(*run, row, count, at);
    at += count;
  }
}

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

  // The same from sums [16] of unsigned levels times digits.
  SKIM_INLINE void StoreIntegers(__m512i high, __m512i low, const IntegerToken& token, void* y, FloatType type) const {
    const __m512i zeros = _mm512_load_si512(zero);
    high = _mm512_sub_epi32(high, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(token.high_sum)));
    low = _mm512_sub_epi32(low, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(token.low_sum)));
    const auto floats = [](__m256i h, __m256i l) {
      const __m512d high_part = _mm512_mul_pd(_mm512_cvtepi32_pd(h), _mm512_set1_pd(kDigitBase));
      return _mm512_cvtpd_ps(_mm512_add_pd(high_part, _mm512_cvtepi32_pd(l)));
    };
    const __m256 lower = floats(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
    const __m256 upper = floats(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1));
    Store(_mm512_insertf32x8(_mm512_castps256_ps512(lower), upper, 1), token.scale, token.sum, y, type);
  }
};

// The type that the compiler itself gives these sums: arrays of __m512i it would keep in memory.
typedef int Int32x16 __attribute__((vector_size(64)));

SKIM_INLINE Int32x16 DotBytes(Int32x16 sums, __m512i levels, __m512i digits) {
  return reinterpret_cast<Int32x16>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), levels, digits));
}

// The sums of the lanes of four registers.
SKIM_INLINE __m128i SumLanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

SKIM_INLINE __m128i SumLanes(const Int32x16 (&v)[4]) {
  return SumLanes(reinterpret_cast<__m512i>(v[0]), reinterpret_cast<__m512i>(v[1]), reinterpret_cast<__m512i>(v[2]),
                  reinterpret_cast<__m512i>(v[3]));
}

SKIM_INLINE __m128 SumLanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
  const __m512 all =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)), _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// ---- rows

// A prepared token of the integer kind: its meaning in the first kAlignment bytes, the high digits, the low digits.
int64_t IntegerBytes(int64_t K) { return kAlignment + 2 * PaddedColumns(K); }

struct IntegerView {
  IntegerToken token;
  const int8_t *high, *low;

  IntegerView(const void* prepared, int64_t m, int64_t K) {
    const char* start = static_cast<const char*>(prepared) + m * IntegerBytes(K);
    std::memcpy(&token, start, sizeof token);
    high = reinterpret_cast<const int8_t*>(start) + kAlignment;
    low = high + PaddedColumns(K);
  }
};

// The sums of 16 rows, each in the lanes of a register that are yet to be added up.
template <typename T>
struct Lanes {
  alignas(64) T of_row[kTileRows][16] = {};
};

SKIM_INLINE __m512i SumRows(const Lanes<int32_t>& lanes) {
  const auto four = [&](int r) __attribute__((always_inline)) {
    return SumLanes(Load(lanes.of_row[r]), Load(lanes.of_row[r + 1]), Load(lanes.of_row[r + 2]),
                    Load(lanes.of_row[r + 3]));
  };
  const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(4), 1);
  const __m256i upper = _mm256_inserti128_si256(_mm256_castsi128_si256(four(8)), four(12), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}

SKIM_INLINE __m512 SumRows(const Lanes<float>& lanes) {
  const auto four = [&](int r) __attribute__((always_inline)) {
    return SumLanes(_mm512_load_ps(lanes.of_row[r]), _mm512_load_ps(lanes.of_row[r + 1]),
                    _mm512_load_ps(lanes.of_row[r + 2]), _mm512_load_ps(lanes.of_row[r + 3]));
  };
  const __m256 lower = _mm256_insertf128_ps(_mm256_castps128_ps256(four(0)), four(4), 1);
  const __m256 upper = _mm256_insertf128_ps(_mm256_castps128_ps256(four(8)), four(12), 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(lower), upper, 1);
}

// One token: the sums over its digits of `count` rows from `row` on, to the places from `at` on.
template <typename Levels>
void DotIntegers(const RowRun& run, int64_t row, int64_t count, int64_t K, const IntegerView& x, int64_t at,
                 Lanes<int32_t>& high_lanes, Lanes<int32_t>& low_lanes) {
  const int64_t row_bytes = RowBytes(Levels::kWidth, K), superblocks = Superblocks(K);
  for (int64_t r = 0; r < count; ++r) {
    const Levels levels(run, row + r);
    const int8_t *x_high = x.high, *x_low = x.low;
    Int32x16 high[2] = {}, low[2] = {};
    EachCodes<Levels::kWidth>(run.codes + (row + r) * row_bytes, K, 0, superblocks,
                              [&](__m512i codes, auto parity) __attribute__((always_inline)) {
                                const __m512i bytes = levels(codes);
                                high[parity] = DotBytes(high[parity], bytes, Load(x_high));
                                low[parity] = DotBytes(low[parity], bytes, Load(x_low));
                                x_high += kChunk;
                                x_low += kChunk;
                              });
    _mm512_store_si512(high_lanes.of_row[at + r], reinterpret_cast<__m512i>(high[0] + high[1]));
    _mm512_store_si512(low_lanes.of_row[at + r], reinterpret_cast<__m512i>(low[0] + low[1]));
  }
}

// A prepared token of the exact kind: its floats, their sum and padding.
constexpr int64_t ExactFloats(int64_t K) { return PaddedColumns(K) + kAlignment / 4; }

// One token: its products with `count` rows from `row` on, to the places from `at` on.
template <typename Levels>
void DotFloats(const RowRun& run, int64_t row, int64_t count, int64_t K, const float* token, int64_t at,
               Lanes<float>& lanes) {
  const int64_t row_bytes = RowBytes(Levels::kWidth, K), superblocks = Superblocks(K);
  for (int64_t r = 0; r < count; ++r) {
    const Levels levels(run, row + r);
    const float* x = token;
    __m512 sums[2][4];
    for (auto& half : sums) {
      for (__m512& sum : half) sum = _mm512_setzero_ps();
    }
    EachCodes<Levels::kWidth>(run.codes + (row + r) * row_bytes, K, 0, superblocks,
                              [&](__m512i codes, auto parity) __attribute__((always_inline)) {
                                const Floats64 floats = levels(codes);
                                for (int i = 0; i < 4; ++i) {
                                  __m512& sum = sums[parity][i];
                                  sum = _mm512_fmadd_ps(floats.v[i], _mm512_load_ps(x + 16 * i), sum);
                                }
                                x += kChunk;
                              });
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) sum = _mm512_add_ps(sum, _mm512_add_ps(sums[0][i], sums[1][i]));
    _mm512_store_ps(lanes.of_row[at + r], sum);
  }
}

// The levels of the superblocks begin..end of a row as unsigned bytes.
template <typename Levels>
void DecodeBytes(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, uint8_t* out) {
  const Levels levels(run, row);
  EachCodes<Levels::kWidth>(run.codes + row * RowBytes(Levels::kWidth, K), K, begin, end,
                            [&](__m512i codes, auto) __attribute__((always_inline)) {
                              _mm512_store_si512(out, levels(codes));
                              out += kChunk;
                            });
}

// The same as floats, unscaled, in prepared order.
template <typename Levels>
void DecodeFloats(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, float* out) {
  const Levels levels(run, row);
  EachCodes<Levels::kWidth>(run.codes + row * RowBytes(Levels::kWidth, K), K, begin, end,
                            [&](__m512i codes, auto) __attribute__((always_inline)) {
                              const Floats64 floats = levels(codes);
                              for (int i = 0; i < 4; ++i) _mm512_store_ps(out + 16 * i, floats.v[i]);
                              out += kChunk;
                            });
}

struct FloatFunctions {
  void (*dot)(const RowRun&, int64_t row, int64_t count, int64_t K, const float* x, int64_t at, Lanes<float>& lanes);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, float* out);
};

struct IntegerFunctions {
  void (*dot)(const RowRun&, int64_t row, int64_t count, int64_t K, const IntegerView& x, int64_t at,
              Lanes<int32_t>& high, Lanes<int32_t>& low);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, uint8_t* out);
};

template <typename Levels>
constexpr FloatFunctions kFloats{DotFloats<Levels>, DecodeFloats<Levels>};
template <typename Levels>
constexpr IntegerFunctions kIntegers{DotIntegers<Levels>, DecodeBytes<Levels>};

constexpr CodebookType kInt8 = CodebookType::kInt8, kHalf = CodebookType::kFloat16;
constexpr FloatFunctions kFloatsOfInt8[kClasses] = {
    kFloats<FloatTable<1, kInt8>>, kFloats<FloatTable<2, kInt8>>, kFloats<FloatTable<3, kInt8>>,
    kFloats<FloatTable<4, kInt8>>, kFloats<WideTable<5>>,         kFloats<WideTable<6>>,
    kFloats<WideTable<7>>,         kFloats<WideTable<8>>,         kFloats<FloatAffine<1>>,
    kFloats<FloatAffine<2>>,       kFloats<FloatAffine<3>>,       kFloats<FloatAffine<4>>,
    kFloats<FloatAffine<5>>,       kFloats<FloatAffine<6>>,       kFloats<FloatAffine<7>>,
    kFloats<FloatAffine<8>>};
constexpr FloatFunctions kFloatsOfHalf[8] = {kFloats<FloatTable<1, kHalf>>, kFloats<FloatTable<2, kHalf>>,
                                             kFloats<FloatTable<3, kHalf>>, kFloats<FloatTable<4, kHalf>>,
                                             kFloats<FloatTable<5, kHalf>>, kFloats<FloatTable<6, kHalf>>,
                                             kFloats<FloatTable<7, kHalf>>, kFloats<FloatTable<8, kHalf>>};
constexpr IntegerFunctions kIntegersOf[kClasses] = {
    kIntegers<UnsignedTable<1>>,  kIntegers<UnsignedTable<2>>,  kIntegers<UnsignedTable<3>>,
    kIntegers<UnsignedTable<4>>,  kIntegers<UnsignedTable<5>>,  kIntegers<UnsignedTable<6>>,
    kIntegers<UnsignedTable<7>>,  kIntegers<UnsignedTable<8>>,  kIntegers<UnsignedAffine<1>>,
    kIntegers<UnsignedAffine<2>>, kIntegers<UnsignedAffine<3>>, kIntegers<UnsignedAffine<4>>,
    kIntegers<UnsignedAffine<5>>, kIntegers<UnsignedAffine<6>>, kIntegers<UnsignedAffine<7>>,
    kIntegers<UnsignedAffine<8>>};

const FloatFunctions& FloatsOf(const Layer& layer, const RowRun& run) {
  const bool half = layer.weights.codebook_type == kHalf && !IsAffine(run.row_class);
  return half ? kFloatsOfHalf[run.row_class] : kFloatsOfInt8[run.row_class];
}

// ---- activations

// Calls body(first column, columns that exist, columns) for each stretch of a prepared token: all full superblocks,
// then a dense last one, or the stretches of a spread one.
template <typename Body>
SKIM_INLINE void EachStretch(int64_t K, Body&& body) {
  const int64_t tail = K - K % kSuperblockColumns;
  if (tail > 0) body(int64_t{0}, tail, tail);
  if (tail == K) return;
  const int lanes = TailLanes(K);
  if (TailIsDense(lanes)) {
    body(tail, K - tail, int64_t{8 * lanes});
  } else {
    for (int j = 0; j < 8; ++j) {
      const int64_t first = tail + j * lanes, left = K - first;
      body(first, left < 0 ? 0 : Min(left, lanes), int64_t{kLanes});
    }
  }
}

// Token m of x as PaddedColumns(K) floats, multiplied by the column scale, in the order of the columns.
void ScaleToken(const Layer& layer, const void* x, FloatType type, int64_t m, float* out) {
  const int64_t K = layer.weights.K;
  const uint16_t* scale = layer.weights.column_scale.size ? layer.weights.column_scale.data : nullptr;
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

void PrepareIntegers(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  auto* floats = ThreadScratch<float>(Scratch::kToken, columns);
  for (int64_t m = 0; m < M; ++m) {
    auto* out = static_cast<int8_t*>(prepared) + m * IntegerBytes(K);
    ScaleToken(layer, x, type, m, floats);
    const IntegerToken token = QuantizeToken(floats, columns, out + kAlignment, out + kAlignment + columns);
    std::memcpy(out, &token, sizeof token);
  }
}

// 64 floats, 4 x 16, between the order of their columns and that of `Floats64`.
SKIM_INLINE void TransposeQuads(__m512* v) {
  const __m512 a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
  const __m512 c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
  v[0] = _mm512_shuffle_ps(a, c, 0x44);
  v[1] = _mm512_shuffle_ps(a, c, 0xee);
  v[2] = _mm512_shuffle_ps(b, d, 0x44);
  v[3] = _mm512_shuffle_ps(b, d, 0xee);
}

SKIM_INLINE void TransposeLanes(__m512* v) {
  const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x44), d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}

void PrepareFloats(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  auto* out = static_cast<float*>(prepared);
  for (int64_t m = 0; m < M; ++m, out += ExactFloats(K)) {
    ScaleToken(layer, x, type, m, out);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < columns; k += kChunk) {
      __m512 v[4];
      for (int i = 0; i < 4; ++i) v[i] = _mm512_load_ps(out + k + 16 * i);
      for (const __m512& part : v) sum = _mm512_add_ps(sum, part);
      TransposeLanes(v);
      TransposeQuads(v);
      for (int i = 0; i < 4; ++i) _mm512_store_ps(out + k + 16 * i, v[i]);
    }
    out[columns] = _mm512_reduce_add_ps(sum);
  }
}

// ---- several tokens: a tile of rows is decoded, then multiplied with all of them

constexpr int kMicroRows = 4;

SKIM_INLINE void AddFour(int32_t* out, __m128i more) {
  auto* four = reinterpret_cast<__m128i*>(out);
  _mm_store_si128(four, _mm_add_epi32(_mm_load_si128(four), more));
}

// Sums of the products of kTokens tokens, `x_stride` bytes apart, with four rows of a tile over `columns` columns,
// added to sums[token * 2 * kTileRows] (high digits) and kTileRows behind (low digits).
template <int kTokens>
void MicroIntegers(const int8_t* high, const int8_t* low, int64_t x_stride, const uint8_t* tile, int64_t columns,
                   int32_t* sums) {
  Int32x16 high_sums[kTokens][kMicroRows] = {}, low_sums[kTokens][kMicroRows] = {};
  for (int64_t k = 0; k < columns; k += kChunk) {
    __m512i levels[kMicroRows];
    for (int r = 0; r < kMicroRows; ++r) levels[r] = _mm512_load_si512(tile + r * columns + k);
    for (int t = 0; t < kTokens; ++t) {
      const __m512i h = Load(high + t * x_stride + k), l = Load(low + t * x_stride + k);
      for (int r = 0; r < kMicroRows; ++r) {
        high_sums[t][r] = DotBytes(high_sums[t][r], levels[r], h);
        low_sums[t][r] = DotBytes(low_sums[t][r], levels[r], l);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    AddFour(sums + t * 2 * kTileRows, SumLanes(high_sums[t]));
    AddFour(sums + t * 2 * kTileRows + kTileRows, SumLanes(low_sums[t]));
  }
}

constexpr int kIntegerTokens = 3;  // 3 x 4 x 2 sums in 24 of the 32 registers
using IntegerMicro = void (*)(const int8_t*, const int8_t*, int64_t, const uint8_t*, int64_t, int32_t*);
constexpr IntegerMicro kIntegerMicros[kIntegerTokens] = {MicroIntegers<1>, MicroIntegers<2>, MicroIntegers<3>};

// The same with floats: sums[token * kTileRows].
template <int kTokens>
void MicroFloats(const float* x, int64_t x_stride, const float* tile, int64_t columns, float* sums) {
  __m512 of[kTokens][kMicroRows];
  for (auto& of_token : of) {
    for (__m512& sum : of_token) sum = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < columns; k += 16) {
    __m512 levels[kMicroRows];
    for (int r = 0; r < kMicroRows; ++r) levels[r] = _mm512_load_ps(tile + r * columns + k);
    for (int t = 0; t < kTokens; ++t) {
      const __m512 token = _mm512_load_ps(x + t * x_stride + k);
      for (int r = 0; r < kMicroRows; ++r) of[t][r] = _mm512_fmadd_ps(levels[r], token, of[t][r]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    float* out = sums + t * kTileRows;
    _mm_store_ps(out, _mm_add_ps(_mm_load_ps(out), SumLanes(of[t][0], of[t][1], of[t][2], of[t][3])));
  }
}

constexpr int kFloatTokens = 6;
using FloatMicro = void (*)(const float*, int64_t, const float*, int64_t, float*);
constexpr FloatMicro kFloatMicros[kFloatTokens] = {MicroFloats<1>, MicroFloats<2>, MicroFloats<3>,
                                                   MicroFloats<4>, MicroFloats<5>, MicroFloats<6>};

// Decoded at a time: 16 rows of 8 superblocks are 32 KiB of bytes, of 2 superblocks 32 KiB of floats.
constexpr int64_t kIntegerBlocks = 8;
constexpr int64_t kFloatBlocks = 2;

// Calls body(first superblock, superblocks' end, columns before, columns) for the pieces of K that are decoded at a
// time.
template <typename Body>
SKIM_INLINE void EachPiece(int64_t K, int64_t blocks, Body&& body) {
  const int64_t superblocks = Superblocks(K);
  for (int64_t block = 0; block < superblocks; block += blocks) {
    const int64_t end = Min(block + blocks, superblocks), first = ColumnsBefore(K, block);
    body(block, end, first, ColumnsBefore(K, end) - first);
  }
}

// Calls body(row of the tile, its run, its row in the run), and for rows that only fill the micro kernel up to four,
// which repeat the last one.
template <typename Body>
SKIM_INLINE void EachTileRow(const Layer& layer, int64_t begin, int64_t rows, Body&& body) {
  const RowRun* run = layer.runs;
  for (int64_t r = 0; r < CeilDiv(rows, kMicroRows) * kMicroRows; ++r) {
    const int64_t stored = begin + Min(r, rows - 1);
    run = RunOf(run, stored);
    body(r, *run, stored - run->first);
  }
}

void TileIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t rows, void* y,
                  FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K, stride = IntegerBytes(K);
  auto* tile = ThreadScratch<uint8_t>(Scratch::kTile, kTileRows * kIntegerBlocks * kSuperblockColumns);
  auto* sums = ThreadScratch<int32_t>(Scratch::kSums, M * 2 * kTileRows);
  std::memset(sums, 0, M * 2 * kTileRows * sizeof *sums);
  const IntegerView x(prepared, 0, K);
  EachPiece(K, kIntegerBlocks, [&](int64_t block, int64_t end, int64_t first, int64_t columns) {
    EachTileRow(layer, begin, rows, [&](int64_t r, const RowRun& run, int64_t row) {
      kIntegersOf[run.row_class].decode(run, row, K, block, end, tile + r * columns);
    });
    for (int64_t m = 0; m < M; m += kIntegerTokens) {
      const IntegerMicro micro = kIntegerMicros[Min(M - m, kIntegerTokens) - 1];
      const int8_t *high = x.high + m * stride + first, *low = x.low + m * stride + first;
      for (int64_t r = 0; r < rows; r += kMicroRows) {
        micro(high, low, stride, tile + r * columns, columns, sums + m * 2 * kTileRows + r);
      }
    }
  });
  const RowEnds ends(layer, begin, rows);
  for (int64_t m = 0; m < M; ++m) {
    const int32_t* of_token = sums + m * 2 * kTileRows;
    char* out = static_cast<char*>(y) + m * N * FloatBytes(type);
    ends.StoreIntegers(_mm512_load_si512(of_token), _mm512_load_si512(of_token + kTileRows),
                       IntegerView(prepared, m, K).token, out, type);
  }
}

void TileFloats(const Layer& layer, const float* x, int64_t M, int64_t begin, int64_t rows, void* y, FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K, stride = ExactFloats(K);
  auto* tile = ThreadScratch<float>(Scratch::kTile, kTileRows * kFloatBlocks * kSuperblockColumns);
  auto* sums = ThreadScratch<float>(Scratch::kSums, M * kTileRows);
  std::memset(sums, 0, M * kTileRows * sizeof *sums);
  EachPiece(K, kFloatBlocks, [&](int64_t block, int64_t end, int64_t first, int64_t columns) {
    EachTileRow(layer, begin, rows, [&](int64_t r, const RowRun& run, int64_t row) {
      FloatsOf(layer, run).decode(run, row, K, block, end, tile + r * columns);
    });
    for (int64_t m = 0; m < M; m += kFloatTokens) {
      const FloatMicro micro = kFloatMicros[Min(M - m, kFloatTokens) - 1];
      for (int64_t r = 0; r < rows; r += kMicroRows) {
        micro(x + m * stride + first, stride, tile + r * columns, columns, sums + m * kTileRows + r);
      }
    }
  });
  const RowEnds ends(layer, begin, rows);
  for (int64_t m = 0; m < M; ++m) {
    char* out = static_cast<char*>(y) + m * N * FloatBytes(type);
    ends.Store(_mm512_load_ps(sums + m * kTileRows), 1.0f, x[m * stride + PaddedColumns(K)], out, type);
  }
}

// ---- the table of entry points

SKIM_INLINE void PrefetchBytes(const void* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(static_cast<const char*>(p) + line, _MM_HINT_T0);
}

// What is read of up to 16 rows beside their codes. Short streams, too, and a row can't begin without its codebook.
void PrefetchRows(const Layer& layer, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t rows = Min(end - begin, kTileRows);
  const int entry = layer.weights.codebook_type == kInt8 ? 1 : 2;
  EachRun(layer, begin, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t) {
    const int bits = ClassBits(run.row_class);
    if (run.codebook) {
      PrefetchBytes(static_cast<const char*>(run.codebook) + (row << bits) * entry, (count << bits) * entry);
    }
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
  PrefetchBytes(run->codes + (begin - run->first) * row_bytes, kPrefetch);
}

void MatmulIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                    FloatType type) {
  const int64_t K = layer.weights.K;
  const IntegerView x(prepared, 0, K);
  Lanes<int32_t> high, low;
  PrefetchRange(layer, begin, end);
  for (int64_t first = begin; first < end; first += kTileRows) {
    PrefetchRows(layer, first + 2 * kTileRows, end);
    const int64_t rows = Min(end - first, kTileRows);
    if (M > 1) {
      TileIntegers(layer, prepared, M, first, rows, y, type);
      continue;
    }
    EachRun(layer, first, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t at) {
      kIntegersOf[run.row_class].dot(run, row, count, K, x, at, high, low);
    });
    const RowEnds ends(layer, first, rows);
    ends.StoreIntegers(SumRows(high), SumRows(low), x.token, y, type);
  }
}

void MatmulFloats(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                  FloatType type) {
  const int64_t K = layer.weights.K;
  const auto* x = static_cast<const float*>(prepared);
  Lanes<float> lanes;
  PrefetchRange(layer, begin, end);
  for (int64_t first = begin; first < end; first += kTileRows) {
    PrefetchRows(layer, first + 2 * kTileRows, end);
    const int64_t rows = Min(end - first, kTileRows);
    if (M > 1) {
      TileFloats(layer, x, M, first, rows, y, type);
      continue;
    }
    EachRun(layer, first, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t at) {
      FloatsOf(layer, run).dot(run, row, count, K, x, at, lanes);
    });
    const RowEnds ends(layer, first, rows);
    ends.Store(SumRows(lanes), 1.0f, x[PaddedColumns(K)], y, type);
  }
}

void Gather(const Layer& layer, int64_t stored, void* y, FloatType type) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  const RowRun* run = RunOf(layer.runs, stored);
  const int64_t row = stored - run->first;
  auto* levels = ThreadScratch<float>(Scratch::kTile, columns);
  FloatsOf(layer, *run).decode(*run, row, K, 0, Superblocks(K), levels);
  for (int64_t k = 0; k < columns; k += kChunk) {
    __m512 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm512_load_ps(levels + k + 16 * i);
    TransposeQuads(v);
    TransposeLanes(v);
    for (int i = 0; i < 4; ++i) _mm512_store_ps(levels + k + 16 * i, v[i]);
  }
  const RowEnd end = MakeRowEnd(layer, *run, row);
  const uint16_t* scale = layer.weights.column_scale.size ? layer.weights.column_scale.data : nullptr;
  EachStretch(K, [&](int64_t first, int64_t present, int64_t stretch) {
    for (int64_t k = 0; k < present; ++k) {
      const float level = end.offset + end.scale * levels[k];
      const float weight = scale ? level * HalfToFloat(scale[first + k]) : level;
      if (type == FloatType::kFloat32) {
        static_cast<float*>(y)[first + k] = weight;
      } else {
        static_cast<uint16_t*>(y)[first + k] = FloatToHalf(weight);
      }
    }
    levels += stretch;
  });
}

int64_t ExactBytes(int64_t K) { return ExactFloats(K) * static_cast<int64_t>(sizeof(float)); }

}  // namespace

const Kernels& Avx512Kernels() {
  static const Kernels kernels{"avx512",
                               {ExactBytes, PrepareFloats, MatmulFloats},
                               {IntegerBytes, PrepareIntegers, MatmulIntegers},
                               Swiglu,
                               Gather};
  return kernels;
}

}  // namespace skim
