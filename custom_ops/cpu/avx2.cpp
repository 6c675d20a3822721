// The AVX2 kernel: exact float32 arithmetic, 32 codes at a time.
//
// A register of 32 codes becomes four registers of 8 floats with hardly a conversion: the bytes of the float32 levels
// are looked up one byte plane at a time (`TableLevels`), put together to 16-bit halves of floats, and even and odd
// halves are moved into their places. The floats come out in the order
//
//     columns 0 2 4 6 16 18 20 22 | 1 3 5 7 17 19 21 23 | 8 10 12 14 24 26 28 30 | 9 11 13 15 25 27 29 31
//
// of every group of 32 columns, and the activations are prepared in that order too: a dot product does not mind. A
// prepared token is
//
//     256 floats for each full superblock, one group of 32 columns for each code of a lane
//     64 or 128 floats for a last superblock of 8 or 16 lanes: the groups are 32 consecutive columns
//     256 floats for a last superblock of another size: lanes that do not exist have activations of 0
//     the sum of all these, which affine rows need for their offset, and 15 floats of padding
//
// This file is compiled for AVX2 as a whole. So nothing in it may have external linkage but `Avx2Kernels`: if the
// linker merged an inline function with its copy in another file, an older CPU could meet an AVX2 instruction there.
#include <immintrin.h>

#include <cstring>

#include "skim/kernels.h"

#define SKIM_INLINE inline __attribute__((always_inline))

namespace skim {
namespace {

constexpr int kGroup = 32;  // columns whose levels are looked up at once
// Decoded at a time for M > 1: 24 rows of 4 superblocks take 96 KiB, and stay in the L2 cache for all tokens; the 16
// KiB of 4 tokens stay in the L1 cache for all rows. Few tokens don't repay the way to L2: 3 rows take 12 KiB.
constexpr int64_t kTileRows = 24;
constexpr int64_t kTileBlocks = 4;
constexpr int64_t kFewTokens = 16;
constexpr int kMicroTokens = 4;  // the micro kernel holds 4 x 3 sums in 12 of the 16 registers
constexpr int kMicroRows = 3;
constexpr int kTokenTail = 16;  // floats behind a prepared token: its sum, and padding

constexpr bool TailIsDense(int lanes) { return lanes == 8 || lanes == 16; }

// Superblocks of a row, the last, shorter one included.
constexpr int64_t Superblocks(int64_t K) { return (K + kSuperblockColumns - 1) / kSuperblockColumns; }

// Floats of the superblocks before `block` in a prepared token.
constexpr int64_t FloatsBefore(int64_t K, int64_t block) {
  const bool dense_tail = TailIsDense(TailLanes(K)) && block == Superblocks(K);
  return dense_tail ? (block - 1) * kSuperblockColumns + 8 * TailLanes(K) : block * kSuperblockColumns;
}

int64_t PreparedFloats(int64_t K) { return FloatsBefore(K, Superblocks(K)) + kTokenTail; }

int64_t PreparedBytes(int64_t K) { return PreparedFloats(K) * static_cast<int64_t>(sizeof(float)); }

constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

float Half(uint16_t bits) { return _cvtsh_ss(bits); }

// ---- codes

// Field i of code j of all 32 lanes, in its place within the code.
template <int kBits, int kJ, int kI>
SKIM_INLINE __m256i FieldOf(const __m256i* vectors) {
  constexpr Field f = CodeField(kBits, kJ, kI);
  constexpr int right = f.bit - f.code_bit;
  __m256i bits = vectors[f.vector];
  if constexpr (right > 0) bits = _mm256_srli_epi16(bits, right);
  if constexpr (right < 0) bits = _mm256_slli_epi16(bits, -right);
  if constexpr (f.length == 8) return bits;
  return _mm256_and_si256(bits, _mm256_set1_epi8(static_cast<char>(((1 << f.length) - 1) << f.code_bit)));
}

// Code j of all 32 lanes.
template <int kBits, int kJ>
SKIM_INLINE __m256i CodesOf(const __m256i* vectors) {
  __m256i codes = FieldOf<kBits, kJ, 0>(vectors);
  if constexpr (FieldCount(kBits, kJ) > 1) codes = _mm256_or_si256(codes, FieldOf<kBits, kJ, 1>(vectors));
  if constexpr (FieldCount(kBits, kJ) > 2) codes = _mm256_or_si256(codes, FieldOf<kBits, kJ, 2>(vectors));
  return codes;
}

SKIM_INLINE long long Load64(const uint8_t* p) {
  long long value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Field i of the code that 64-bit lane `lane` of group `group` holds in a dense superblock of 8 or 16 lanes; a field of
// length 0 if that code has fewer.
constexpr Field DenseField(int bits, int lanes, int group, int lane, int i) {
  const int j = group * (kGroup / lanes) + lane / (lanes / 8);
  return i < FieldCount(bits, j) ? CodeField(bits, j, i) : Field{0, 0, 0, 0};
}

// The lowest `length` bits of each byte.
constexpr long long ByteMask(int length) { return static_cast<long long>(0x0101010101010101u * ((1u << length) - 1)); }

template <int kBits, int kDenseLanes, int kGroupIndex, int kI>
SKIM_INLINE __m256i DenseFieldOf(const uint8_t* p) {
  constexpr Field f0 = DenseField(kBits, kDenseLanes, kGroupIndex, 0, kI);
  constexpr Field f1 = DenseField(kBits, kDenseLanes, kGroupIndex, 1, kI);
  constexpr Field f2 = DenseField(kBits, kDenseLanes, kGroupIndex, 2, kI);
  constexpr Field f3 = DenseField(kBits, kDenseLanes, kGroupIndex, 3, kI);
  constexpr int second = kDenseLanes == 16 ? 8 : 0;  // odd 64-bit lanes hold the second half of 16 lanes
  __m256i bits = _mm256_set_epi64x(Load64(p + f3.vector * kDenseLanes + second), Load64(p + f2.vector * kDenseLanes),
                                   Load64(p + f1.vector * kDenseLanes + second), Load64(p + f0.vector * kDenseLanes));
  bits = _mm256_srlv_epi64(bits, _mm256_set_epi64x(f3.bit, f2.bit, f1.bit, f0.bit));
  bits = _mm256_and_si256(
      bits, _mm256_set_epi64x(ByteMask(f3.length), ByteMask(f2.length), ByteMask(f1.length), ByteMask(f0.length)));
  return _mm256_sllv_epi64(bits, _mm256_set_epi64x(f3.code_bit, f2.code_bit, f1.code_bit, f0.code_bit));
}

// Codes of 32 consecutive columns of a dense superblock.
template <int kBits, int kDenseLanes, int kGroupIndex>
SKIM_INLINE __m256i DenseCodesOf(const uint8_t* p) {
  // The last code of a group has the most fields.
  constexpr int fields = FieldCount(kBits, (kGroupIndex + 1) * (kGroup / kDenseLanes) - 1);
  __m256i codes = DenseFieldOf<kBits, kDenseLanes, kGroupIndex, 0>(p);
  if constexpr (fields > 1) codes = _mm256_or_si256(codes, DenseFieldOf<kBits, kDenseLanes, kGroupIndex, 1>(p));
  if constexpr (fields > 2) codes = _mm256_or_si256(codes, DenseFieldOf<kBits, kDenseLanes, kGroupIndex, 2>(p));
  return codes;
}

// All codes of a dense superblock, 32 consecutive columns each. Not inlined: it is short beside a row, and there would
// be a copy for every kind of levels.
template <int kBits>
__attribute__((noinline)) void DenseCodes(const uint8_t* p, int lanes, __m256i* codes) {
  if (lanes == 8) {
    codes[0] = DenseCodesOf<kBits, 8, 0>(p);
    codes[1] = DenseCodesOf<kBits, 8, 1>(p);
  } else {
    codes[0] = DenseCodesOf<kBits, 16, 0>(p);
    codes[1] = DenseCodesOf<kBits, 16, 1>(p);
    codes[2] = DenseCodesOf<kBits, 16, 2>(p);
    codes[3] = DenseCodesOf<kBits, 16, 3>(p);
  }
}

// Hands the codes of the superblocks begin..end of a row to `sink`, 32 at a time, in prepared order.
template <int kBits, typename Sink>
SKIM_INLINE void EachCodes(const uint8_t* row, int64_t K, int64_t begin, int64_t end, Sink&& sink) {
  const int64_t full = Min(K / kSuperblockColumns, end);
  const int lanes = full < end ? TailLanes(K) : 0;
  const uint8_t* p = row + begin * kBits * kLanes;
  int64_t blocks = full - begin;
  uint8_t spread[kBits * kLanes];
  if (lanes != 0 && !TailIsDense(lanes)) {
    // Spread the last superblock out to 32 lanes; the bytes behind the row are not ours to read.
    const uint8_t* tail = p + blocks * kBits * kLanes;
    std::memset(spread, 0, sizeof spread);
    for (int i = 0; i < kBits; ++i) std::memcpy(spread + i * kLanes, tail + i * lanes, lanes);
    ++blocks;
  }
  for (; blocks > 0; --blocks, p += kBits * kLanes) {
    if (blocks == 1 && lanes != 0 && !TailIsDense(lanes)) p = spread;
    __m256i vectors[kBits];
    for (int i = 0; i < kBits; ++i) {
      vectors[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * kLanes));
    }
    sink(CodesOf<kBits, 0>(vectors));
    sink(CodesOf<kBits, 1>(vectors));
    sink(CodesOf<kBits, 2>(vectors));
    sink(CodesOf<kBits, 3>(vectors));
    sink(CodesOf<kBits, 4>(vectors));
    sink(CodesOf<kBits, 5>(vectors));
    sink(CodesOf<kBits, 6>(vectors));
    sink(CodesOf<kBits, 7>(vectors));
  }
  if (TailIsDense(lanes)) {
    __m256i codes[4];
    DenseCodes<kBits>(p, lanes, codes);
    for (int i = 0; i < 8 * lanes / kGroup; ++i) sink(codes[i]);
  }
}

// ---- levels: 32 codes to 32 floats, in prepared order; `ScaleOf` makes them a row's.

struct Floats32 {
  __m256 v[4];
};

// The floats whose upper halves are given, 32 of them in the order in which _mm256_unpack{lo,hi}_epi8 leave columns;
// their lower halves are 0.
SKIM_INLINE Floats32 FromUpperHalves(__m256i high0, __m256i high1) {
  const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(high0, 16)), _mm256_castsi256_ps(_mm256_and_si256(high0, odd)),
           _mm256_castsi256_ps(_mm256_slli_epi32(high1, 16)), _mm256_castsi256_ps(_mm256_and_si256(high1, odd))}};
}

// The same with lower halves.
SKIM_INLINE Floats32 FromHalves(__m256i low0, __m256i low1, __m256i high0, __m256i high1) {
  return {{_mm256_castsi256_ps(_mm256_blend_epi16(_mm256_slli_epi32(high0, 16), low0, 0x55)),
           _mm256_castsi256_ps(_mm256_blend_epi16(_mm256_srli_epi32(low0, 16), high0, 0xaa)),
           _mm256_castsi256_ps(_mm256_blend_epi16(_mm256_slli_epi32(high1, 16), low1, 0x55)),
           _mm256_castsi256_ps(_mm256_blend_epi16(_mm256_srli_epi32(low1, 16), high1, 0xaa))}};
}

// 16 consecutive entries of a codebook from `entry` on, of which the first `count` are read.
template <CodebookType kType, int kCount>
SKIM_INLINE void LoadEntries(const void* codebook, int64_t entry, __m256* low, __m256* high) {
  if constexpr (kType == CodebookType::kInt8) {
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, static_cast<const int8_t*>(codebook) + entry, kCount);
    *low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    *high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
  } else {
    __m128i halves[2] = {};
    std::memcpy(halves, static_cast<const uint16_t*>(codebook) + entry, 2 * kCount);
    *low = _mm256_cvtph_ps(halves[0]);
    *high = _mm256_cvtph_ps(halves[1]);
  }
}

// Free codebooks of up to 6 bits: one byte shuffle for each byte plane of the float32 entries and each 16 entries. The
// lowest byte of an entry is always 0, and that of an int8 value the two lowest.
template <int kBits, CodebookType kType>
struct TableLevels {
  static constexpr int kWidth = kBits;
  static constexpr int kPlanes = kType == CodebookType::kInt8 ? 2 : 3;
  static constexpr int kTables = kBits <= 4 ? 1 : 1 << (kBits - 4);
  __m256i tables[3][kTables];  // byte 1, 2 and 3 of 16 entries, in both halves

  SKIM_INLINE TableLevels(const RowRun& run, int64_t row) {
    constexpr int count = kBits <= 4 ? 1 << kBits : 16;
    const __m256i byte = _mm256_set1_epi16(0xff);
    for (int t = 0; t < kTables; ++t) {
      __m256 low, high;
      LoadEntries<kType, count>(run.codebook, (row << kBits) + 16 * t, &low, &high);
      const __m256i a = _mm256_castps_si256(low), b = _mm256_castps_si256(high);
      // Packing works within halves: [a 0-3, b 0-3 | a 4-7, b 4-7], put in order by the permutation.
      const __m256i top = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
      const __m256i top_bytes = _mm256_packus_epi16(_mm256_and_si256(top, byte), _mm256_srli_epi16(top, 8));
      tables[1][t] = _mm256_permutevar8x32_epi32(top_bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
      tables[2][t] = _mm256_permutevar8x32_epi32(top_bytes, _mm256_setr_epi32(2, 6, 3, 7, 2, 6, 3, 7));
      if constexpr (kPlanes == 3) {
        const __m256i word = _mm256_set1_epi32(0xffff);
        const __m256i bottom = _mm256_packus_epi32(_mm256_and_si256(a, word), _mm256_and_si256(b, word));
        const __m256i bottom_bytes = _mm256_packus_epi16(_mm256_srli_epi16(bottom, 8), _mm256_setzero_si256());
        tables[0][t] = _mm256_permutevar8x32_epi32(bottom_bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
      }
    }
  }

  SKIM_INLINE __m256i Lookup(const __m256i* table, __m256i codes) const {
    __m256i bytes = _mm256_shuffle_epi8(table[0], codes);
    if constexpr (kBits > 4) {
      // A blend takes its selector from the top bit of each byte.
      const __m256i bit4 = _mm256_slli_epi16(codes, 3);
      bytes = _mm256_blendv_epi8(bytes, _mm256_shuffle_epi8(table[1], codes), bit4);
      if constexpr (kBits > 5) {
        const __m256i upper =
            _mm256_blendv_epi8(_mm256_shuffle_epi8(table[2], codes), _mm256_shuffle_epi8(table[3], codes), bit4);
        bytes = _mm256_blendv_epi8(bytes, upper, _mm256_slli_epi16(codes, 2));
      }
    }
    return bytes;
  }

  SKIM_INLINE Floats32 operator()(__m256i codes) const {
    const __m256i byte2 = Lookup(tables[1], codes), byte3 = Lookup(tables[2], codes);
    const __m256i high0 = _mm256_unpacklo_epi8(byte2, byte3), high1 = _mm256_unpackhi_epi8(byte2, byte3);
    if constexpr (kPlanes == 2) return FromUpperHalves(high0, high1);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i byte1 = Lookup(tables[0], codes);
    return FromHalves(_mm256_unpacklo_epi8(zero, byte1), _mm256_unpackhi_epi8(zero, byte1), high0, high1);
  }
};

// Evenly spaced levels of any width: (code - 2^(b-1)) * 2^24, an integer whose top byte is converted.
template <int kBits>
struct AffineLevels {
  static constexpr int kWidth = kBits;

  SKIM_INLINE AffineLevels(const RowRun&, int64_t) {}

  SKIM_INLINE Floats32 operator()(__m256i codes) const {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i steps = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(1 << (kBits - 1))));
    Floats32 levels = FromUpperHalves(_mm256_unpacklo_epi8(zero, steps), _mm256_unpackhi_epi8(zero, steps));
    for (__m256& v : levels.v) v = _mm256_cvtepi32_ps(_mm256_castps_si256(v));
    return levels;
  }
};
constexpr float kAffineUnit = 1.0f / (1 << 24);

// Free codebooks of 7 and 8 bits: gathers from a table of floats. Slow, and rarely of use (see docs/format.md).
template <int kBits, CodebookType kType>
struct WideLevels {
  static constexpr int kWidth = kBits;
  alignas(32) float table[1 << kBits];

  SKIM_INLINE WideLevels(const RowRun& run, int64_t row) {
    for (int i = 0; i < 1 << kBits; i += 16) {
      __m256 low, high;
      LoadEntries<kType, 16>(run.codebook, (row << kBits) + i, &low, &high);
      _mm256_store_ps(table + i, low);
      _mm256_store_ps(table + i + 8, high);
    }
  }

  SKIM_INLINE Floats32 operator()(__m256i codes) const {
    const __m256i zero = _mm256_setzero_si256();
    Floats32 levels = FromHalves(_mm256_unpacklo_epi8(codes, zero), _mm256_unpackhi_epi8(codes, zero), zero, zero);
    for (__m256& v : levels.v) v = _mm256_i32gather_ps(table, _mm256_castps_si256(v), 4);
    return levels;
  }
};

struct RowScale {
  float scale, offset;
};

RowScale ScaleOf(const RowRun& run, int64_t row) {
  if (IsAffine(run.row_class)) return {Half(run.row_scale[2 * row]) * kAffineUnit, Half(run.row_scale[2 * row + 1])};
  return {run.row_scale ? Half(run.row_scale[row]) : 1.0f, 0.0f};
}

// ---- rows

// What a token's product with a row, sum_k level * x, becomes before it is stored.
struct RowEnd {
  float scale, offset, bias;
  int64_t n;  // original row

  RowEnd(const Layer& layer, const RowRun& run, int64_t row) {
    const RowScale s = ScaleOf(run, row);
    scale = s.scale;
    offset = s.offset;
    n = layer.destination ? layer.destination[run.first + row] : run.first + row;
    bias = layer.weights.bias.size ? layer.weights.bias.data[n] : 0.0f;
  }
  RowEnd() = default;

  float operator()(float product, float token_sum) const { return product * scale + (offset * token_sum + bias); }
};

SKIM_INLINE void StoreFloat(void* y, FloatType type, int64_t i, float value) {
  if (type == FloatType::kFloat32) {
    static_cast<float*>(y)[i] = value;
  } else {
    static_cast<uint16_t*>(y)[i] = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
  }
}

float Sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// One token: rows begin..end of a run, decoded and multiplied at once.
template <typename Levels>
void DotRows(const Layer& layer, const RowRun& run, int64_t begin, int64_t end, const float* token, void* y,
             FloatType type) {
  const int64_t K = layer.weights.K;
  const int64_t row_bytes = RowBytes(Levels::kWidth, K);
  const int64_t superblocks = Superblocks(K);
  const float token_sum = token[FloatsBefore(K, superblocks)];
  for (int64_t row = begin; row < end; ++row) {
    const Levels levels(run, row);
    const float* x = token;
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    EachCodes<Levels::kWidth>(run.codes + row * row_bytes, K, 0, superblocks,
                              [&](__m256i codes) __attribute__((always_inline)) {
                                const Floats32 w = levels(codes);
                                for (int i = 0; i < 4; ++i) {
                                  sum[i] = _mm256_fmadd_ps(w.v[i], _mm256_load_ps(x + 8 * i), sum[i]);
                                }
                                x += kGroup;
                              });
    const float product = Sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    const RowEnd finish(layer, run, row);
    StoreFloat(y, type, finish.n, finish(product, token_sum));
  }
}

// The levels of the superblocks begin..end of a row, unscaled, in prepared order.
template <typename Levels>
void DecodeRow(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, float* out) {
  const Levels levels(run, row);
  EachCodes<Levels::kWidth>(run.codes + row * RowBytes(Levels::kWidth, K), K, begin, end,
                            [&](__m256i codes) __attribute__((always_inline)) {
                              const Floats32 w = levels(codes);
                              for (int i = 0; i < 4; ++i) _mm256_store_ps(out + 8 * i, w.v[i]);
                              out += kGroup;
                            });
}

struct RowFunctions {
  void (*dot)(const Layer&, const RowRun&, int64_t begin, int64_t end, const float* token, void* y, FloatType type);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, float* out);
};

template <typename Levels>
constexpr RowFunctions kFunctions{DotRows<Levels>, DecodeRow<Levels>};

template <CodebookType kType>
constexpr RowFunctions kFunctionsOf[kClasses] = {
    kFunctions<TableLevels<1, kType>>, kFunctions<TableLevels<2, kType>>, kFunctions<TableLevels<3, kType>>,
    kFunctions<TableLevels<4, kType>>, kFunctions<TableLevels<5, kType>>, kFunctions<TableLevels<6, kType>>,
    kFunctions<WideLevels<7, kType>>,  kFunctions<WideLevels<8, kType>>,  kFunctions<AffineLevels<1>>,
    kFunctions<AffineLevels<2>>,       kFunctions<AffineLevels<3>>,       kFunctions<AffineLevels<4>>,
    kFunctions<AffineLevels<5>>,       kFunctions<AffineLevels<6>>,       kFunctions<AffineLevels<7>>,
    kFunctions<AffineLevels<8>>};

const RowFunctions& FunctionsOf(const Layer& layer, const RowRun& run) {
  return layer.weights.codebook_type == CodebookType::kInt8 ? kFunctionsOf<CodebookType::kInt8>[run.row_class]
                                                            : kFunctionsOf<CodebookType::kFloat16>[run.row_class];
}

// ---- activations

// Calls body(first column, columns that exist) for each group of 32 floats of a prepared token.
template <typename Body>
SKIM_INLINE void EachGroup(int64_t K, Body&& body) {
  const int64_t tail = K - K % kSuperblockColumns;
  for (int64_t k = 0; k < tail; k += kGroup) body(k, kGroup);
  if (tail == K) return;
  const int lanes = TailLanes(K);
  const int step = TailIsDense(lanes) ? kGroup : lanes;
  for (int64_t k = tail; k < tail + 8 * lanes; k += step) {
    const int64_t left = K - k;
    body(k, left <= 0 ? 0 : left < step ? static_cast<int>(left) : step);
  }
}

SKIM_INLINE __m256 Load8(const void* data, FloatType type, int64_t i) {
  return type == FloatType::kFloat32 ? _mm256_loadu_ps(static_cast<const float*>(data) + i)
                                     : _mm256_cvtph_ps(_mm_loadu_si128(
                                           reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(data) + i)));
}

SKIM_INLINE void Store8(void* data, FloatType type, int64_t i, __m256 value) {
  if (type == FloatType::kFloat32) {
    _mm256_storeu_ps(static_cast<float*>(data) + i, value);
  } else {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(data) + i),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
}

// `columns` elements (32 or fewer) from `first` on; the rest are 0.
SKIM_INLINE Floats32 LoadColumns(const void* data, FloatType type, int64_t first, int columns) {
  Floats32 f;
  if (columns == kGroup) {
    for (int i = 0; i < 4; ++i) f.v[i] = Load8(data, type, first + 8 * i);
    return f;
  }
  alignas(32) float values[kGroup] = {};
  const int64_t bytes = FloatBytes(type);
  std::memcpy(values, static_cast<const char*>(data) + first * bytes, columns * bytes);
  if (type == FloatType::kFloat32) {
    for (int i = 0; i < 4; ++i) f.v[i] = _mm256_load_ps(values + 8 * i);
  } else {
    for (int i = 0; i < 4; ++i) f.v[i] = Load8(values, type, 8 * i);
  }
  return f;
}

SKIM_INLINE void StoreColumns(void* data, FloatType type, int64_t first, int columns, const Floats32& f) {
  if (columns == kGroup) {
    for (int i = 0; i < 4; ++i) Store8(data, type, first + 8 * i, f.v[i]);
    return;
  }
  alignas(32) float values[kGroup];
  for (int i = 0; i < 4; ++i) Store8(values, type, 8 * i, f.v[i]);
  const int64_t bytes = FloatBytes(type);
  std::memcpy(static_cast<char*>(data) + first * bytes, values, columns * bytes);
}

// 16 columns, 8 of each half of a group, to even and odd ones; and back.
SKIM_INLINE void Deinterleave(__m256 low, __m256 high, __m256* even, __m256* odd) {
  const __m256 a = _mm256_permute2f128_ps(low, high, 0x20), b = _mm256_permute2f128_ps(low, high, 0x31);
  *even = _mm256_shuffle_ps(a, b, 0x88);
  *odd = _mm256_shuffle_ps(a, b, 0xdd);
}

SKIM_INLINE void Interleave(__m256 even, __m256 odd, __m256* low, __m256* high) {
  const __m256 a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
  *low = _mm256_permute2f128_ps(a, b, 0x20);
  *high = _mm256_permute2f128_ps(a, b, 0x31);
}

// 32 columns in their own order to prepared order, and back.
SKIM_INLINE Floats32 ToPrepared(const Floats32& f) {
  Floats32 result;
  Deinterleave(f.v[0], f.v[2], &result.v[0], &result.v[1]);
  Deinterleave(f.v[1], f.v[3], &result.v[2], &result.v[3]);
  return result;
}

SKIM_INLINE Floats32 FromPrepared(const Floats32& f) {
  Floats32 result;
  Interleave(f.v[0], f.v[1], &result.v[0], &result.v[2]);
  Interleave(f.v[2], f.v[3], &result.v[1], &result.v[3]);
  return result;
}

SKIM_INLINE void MultiplyColumnScale(const Layer& layer, int64_t first, int columns, Floats32* f) {
  if (layer.weights.column_scale.size == 0) return;
  const Floats32 scale = LoadColumns(layer.weights.column_scale.data, FloatType::kFloat16, first, columns);
  for (int i = 0; i < 4; ++i) f->v[i] = _mm256_mul_ps(f->v[i], scale.v[i]);
}

void Prepare(const Layer& layer, const void* x, FloatType type, int64_t M, void* out) {
  const int64_t K = layer.weights.K;
  auto* prepared = static_cast<float*>(out);
  for (int64_t m = 0; m < M; ++m) {
    const char* token = static_cast<const char*>(x) + m * K * FloatBytes(type);
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    EachGroup(K, [&](int64_t first, int columns) {
      Floats32 f = LoadColumns(token, type, first, columns);
      MultiplyColumnScale(layer, first, columns, &f);
      f = ToPrepared(f);
      for (int i = 0; i < 4; ++i) {
        sum[i] = _mm256_add_ps(sum[i], f.v[i]);
        _mm256_store_ps(prepared + 8 * i, f.v[i]);
      }
      prepared += kGroup;
    });
    *prepared = Sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    prepared += kTokenTail;
  }
}

// ---- several tokens

// Sums of the products of 1..4 tokens with 1..3 rows over `floats` columns, added to sums[row * sums_stride + token].
template <int kTokens, int kRows>
void MicroKernel(const float* x, int64_t x_stride, const float* w, int64_t floats, float* sums, int64_t sums_stride) {
  __m256 sum[kRows][kMicroTokens];
  for (auto& row : sum) {
    for (__m256& s : row) s = _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < floats; k += 8) {
    __m256 weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = _mm256_load_ps(w + r * floats + k);
    for (int t = 0; t < kTokens; ++t) {
      const __m256 token = _mm256_load_ps(x + t * x_stride + k);
      for (int r = 0; r < kRows; ++r) sum[r][t] = _mm256_fmadd_ps(weights[r], token, sum[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(sum[r][0], sum[r][1]), _mm256_hadd_ps(sum[r][2], sum[r][3]));
    const __m128 total = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    float* out = sums + r * sums_stride;
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), total));
  }
}

using MicroFunction = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t);
constexpr MicroFunction kMicroKernels[kMicroTokens][kMicroRows] = {
    {MicroKernel<1, 1>, MicroKernel<1, 2>, MicroKernel<1, 3>},
    {MicroKernel<2, 1>, MicroKernel<2, 2>, MicroKernel<2, 3>},
    {MicroKernel<3, 1>, MicroKernel<3, 2>, MicroKernel<3, 3>},
    {MicroKernel<4, 1>, MicroKernel<4, 2>, MicroKernel<4, 3>}};

// Up to kTileRows stored rows from `begin` on; `tile` and `sums` are scratch.
void MatmulTile(const Layer& layer, const float* prepared, int64_t M, int64_t begin, int64_t rows, float* tile,
                float* sums, void* y, FloatType type) {
  const int64_t K = layer.weights.K;
  const int64_t superblocks = Superblocks(K), stride = PreparedFloats(K);
  const int64_t sums_stride = (M + kMicroTokens - 1) / kMicroTokens * kMicroTokens;
  const RowRun* run_of[kTileRows];
  RowEnd finish[kTileRows];
  const RowRun* run = layer.runs;
  for (int64_t r = 0; r < rows; ++r) {
    while (begin + r >= run->first + run->count) ++run;
    run_of[r] = run;
    finish[r] = RowEnd(layer, *run, begin + r - run->first);
  }
  std::memset(sums, 0, rows * sums_stride * sizeof(float));
  for (int64_t block = 0; block < superblocks; block += kTileBlocks) {
    const int64_t block_end = Min(block + kTileBlocks, superblocks);
    const int64_t first = FloatsBefore(K, block), floats = FloatsBefore(K, block_end) - first;
    for (int64_t r = 0; r < rows; ++r) {
      const RowRun& row_run = *run_of[r];
      FunctionsOf(layer, row_run).decode(row_run, begin + r - row_run.first, K, block, block_end, tile + r * floats);
    }
    for (int64_t m = 0; m < M; m += kMicroTokens) {
      const int64_t tokens = Min(M - m, kMicroTokens);
      for (int64_t r = 0; r < rows; r += kMicroRows) {
        kMicroKernels[tokens - 1][Min(rows - r, kMicroRows) - 1](
            prepared + m * stride + first, stride, tile + r * floats, floats, sums + r * sums_stride + m, sums_stride);
      }
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    const float token_sum = prepared[m * stride + stride - kTokenTail];
    for (int64_t r = 0; r < rows; ++r) {
      StoreFloat(y, type, m * layer.weights.N + finish[r].n, finish[r](sums[r * sums_stride + m], token_sum));
    }
  }
}

void Matmul(const Layer& layer, const void* in, int64_t M, int64_t begin, int64_t end, void* y, FloatType type) {
  const auto* prepared = static_cast<const float*>(in);
  if (M == 1) {
    for (int i = 0; i < layer.run_count; ++i) {
      const RowRun& run = layer.runs[i];
      const int64_t first = begin > run.first ? begin - run.first : 0;
      const int64_t last = Min(end - run.first, run.count);
      if (first < last) FunctionsOf(layer, run).dot(layer, run, first, last, prepared, y, type);
    }
    return;
  }
  auto* tile = ThreadScratch<float>(Scratch::kTile, kTileRows * kTileBlocks * kSuperblockColumns);
  auto* sums = ThreadScratch<float>(Scratch::kSums, kTileRows * (M + kMicroTokens));
  const int64_t rows = M <= kFewTokens ? kMicroRows : kTileRows;
  for (int64_t row = begin; row < end; row += rows) {
    MatmulTile(layer, prepared, M, row, Min(end - row, rows), tile, sums, y, type);
  }
}

void Gather(const Layer& layer, int64_t stored, void* y, FloatType type) {
  const int64_t K = layer.weights.K;
  const RowRun* run = layer.runs;
  while (stored >= run->first + run->count) ++run;
  const int64_t row = stored - run->first;
  auto* levels = ThreadScratch<float>(Scratch::kTile, PreparedFloats(K));
  FunctionsOf(layer, *run).decode(*run, row, K, 0, Superblocks(K), levels);
  const RowScale row_scale = ScaleOf(*run, row);
  EachGroup(K, [&](int64_t first, int columns) {
    Floats32 f;
    for (int i = 0; i < 4; ++i) {
      f.v[i] = _mm256_add_ps(_mm256_set1_ps(row_scale.offset),
                             _mm256_mul_ps(_mm256_set1_ps(row_scale.scale), _mm256_load_ps(levels + 8 * i)));
    }
    f = FromPrepared(f);
    MultiplyColumnScale(layer, first, columns, &f);
    StoreColumns(y, type, first, columns, f);
    levels += kGroup;
  });
}

}  // namespace

const Kernels& Avx2Kernels() {
  static const Kernels kernels{"avx2", {PreparedBytes, Prepare, Matmul}, ReferenceKernels().integer, Gather};
  return kernels;
}

}  // namespace skim
