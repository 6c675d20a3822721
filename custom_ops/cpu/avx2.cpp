// The AVX2 kernels: exact float32 arithmetic. Integer arithmetic is in avx2_integer.cpp.
//
// A register of 32 codes becomes four registers of 8 floats with hardly a conversion: the bytes of the float32 levels
// are looked up one byte plane at a time (`FloatTable`), put together to 16-bit halves of floats, and even and odd
// halves are moved into their places. The floats come out in the order
//
//     columns 0 2 4 6 16 18 20 22 | 1 3 5 7 17 19 21 23 | 8 10 12 14 24 26 28 30 | 9 11 13 15 25 27 29 31
//
// of every group of 32 columns, and the activations are prepared in that order too: a dot product does not mind.
//
// Nothing in this file may have external linkage but `Avx2Kernels` (see avx2.h).
#include "avx2.h"

#include "swiglu.h"

namespace skim {
namespace {

// ---- levels: 32 codes to 32 floats, in prepared order; `EndOf` makes them a row's

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

// 16 consecutive entries of a codebook from `entry` on, of which the first kCount are read.
template <int kCount>
SKIM_INLINE void LoadEntries(const int8_t* codebook, int64_t entry, __m256* low, __m256* high) {
  __m128i bytes = _mm_setzero_si128();
  std::memcpy(&bytes, codebook + entry, kCount);
  *low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  *high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
}

template <int kCount>
SKIM_INLINE void LoadEntries(const uint16_t* codebook, int64_t entry, __m256* low, __m256* high) {
  __m128i halves[2] = {};
  std::memcpy(halves, codebook + entry, 2 * kCount);
  *low = _mm256_cvtph_ps(halves[0]);
  *high = _mm256_cvtph_ps(halves[1]);
}

// Elements of a codebook.
template <CodebookType kType>
using Entry = std::conditional_t<kType == CodebookType::kInt8, int8_t, uint16_t>;

// Free codebooks of up to 6 bits: a lookup for each byte plane of the float32 entries. The lowest byte of an entry is
// always 0, and that of an int8 value the two lowest.
template <typename CodeOfRow, CodebookType kType>
struct FloatTable {
  using Code = CodeOfRow;
  static constexpr int kBits = Code::kLevelBits;
  static constexpr int kPlanes = kType == CodebookType::kInt8 ? 2 : 3;
  static constexpr int kTables = kBits <= 4 ? 1 : 1 << (kBits - 4);
  __m256i tables[3][kTables];  // byte 1, 2 and 3 of 16 entries, in both halves

  SKIM_INLINE FloatTable(const RowRun& run, int64_t row) {
    constexpr int count = kBits <= 4 ? 1 << kBits : 16;
    const __m256i byte = _mm256_set1_epi16(0xff);
    const RowLevels<Code, Entry<kType>> levels(run, row);
    for (int t = 0; t < kTables; ++t) {
      __m256 low, high;
      LoadEntries<count>(levels.data(), 16 * t, &low, &high);
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

  SKIM_INLINE Floats32 operator()(__m256i codes) const {
    const __m256i byte2 = Lookup<kBits>(tables[1], codes), byte3 = Lookup<kBits>(tables[2], codes);
    const __m256i high0 = _mm256_unpacklo_epi8(byte2, byte3), high1 = _mm256_unpackhi_epi8(byte2, byte3);
    if constexpr (kPlanes == 2) return FromUpperHalves(high0, high1);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i byte1 = Lookup<kBits>(tables[0], codes);
    return FromHalves(_mm256_unpacklo_epi8(zero, byte1), _mm256_unpackhi_epi8(zero, byte1), high0, high1);
  }
};

// Evenly spaced levels of any width: (code - 2^(b-1)) * 2^24, an integer whose top byte is converted.
template <int kBits>
struct FloatAffine {
  using Code = RowCode<kBits>;

  SKIM_INLINE FloatAffine(const RowRun&, int64_t) {}

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
struct GatheredTable {
  using Code = RowCode<kBits>;
  alignas(32) float table[1 << kBits];

  SKIM_INLINE GatheredTable(const RowRun& run, int64_t row) {
    for (int i = 0; i < 1 << kBits; i += 16) {
      __m256 low, high;
      LoadEntries<16>(static_cast<const Entry<kType>*>(run.codebook), (row << kBits) + i, &low, &high);
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

RowEnd EndOf(const Layer& layer, const RowRun& run, int64_t row) {
  RowEnd end = MakeRowEnd(layer, run, row);
  if (IsAffine(run.row_class)) end.scale *= kAffineUnit;
  return end;
}

// ---- rows

float Sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// One token: rows begin..end of a run, decoded and multiplied at once.
template <typename Levels>
void DotFloats(const Layer& layer, const RowRun& run, int64_t begin, int64_t end, const float* token, void* y,
               FloatType type) {
  const int64_t K = layer.weights.K;
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K);
  const int64_t superblocks = Superblocks(K);
  const float token_sum = token[PaddedColumns(K)];
  for (int64_t row = begin; row < end; ++row) {
    const Levels levels(run, row);
    const float* x = token;
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    EachCodes<typename Levels::Code, 1>(run.codes + row * row_bytes, row_bytes, K, 0, superblocks,
                                        [&](const __m256i(&codes)[1]) __attribute__((always_inline)) {
                                          const Floats32 w = levels(codes[0]);
                                          for (int i = 0; i < 4; ++i) {
                                            sum[i] = _mm256_fmadd_ps(w.v[i], _mm256_load_ps(x + 8 * i), sum[i]);
                                          }
                                          x += kGroup;
                                        });
    const float product = Sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    const RowEnd row_end = EndOf(layer, run, row);
    StoreFloat(y, type, row_end.n, Finish(row_end, product, token_sum));
  }
}

// The levels of the superblocks begin..end of a row, unscaled, in prepared order.
template <typename Levels>
void DecodeFloats(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, float* out) {
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K);
  const Levels levels(run, row);
  EachCodes<typename Levels::Code, 1>(run.codes + row * row_bytes, row_bytes, K, begin, end,
                                      [&](const __m256i(&codes)[1]) __attribute__((always_inline)) {
                                        const Floats32 w = levels(codes[0]);
                                        for (int i = 0; i < 4; ++i) _mm256_store_ps(out + 8 * i, w.v[i]);
                                        out += kGroup;
                                      });
}

struct FloatFunctions {
  void (*dot)(const Layer&, const RowRun&, int64_t begin, int64_t end, const float* token, void* y, FloatType type);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, float* out);
};

template <typename Levels>
constexpr FloatFunctions kFloats{DotFloats<Levels>, DecodeFloats<Levels>};

template <CodebookType kType>
struct FloatChoice {
  template <int kClass>
  static constexpr FloatFunctions Of() {
    using Code = CodeOfClass<kClass>;
    if constexpr (IsAffine(kClass)) {
      return kFloats<FloatAffine<Code::kBits>>;
    } else if constexpr (Code::kLevelBits > 6) {
      return kFloats<GatheredTable<Code::kBits, kType>>;
    } else {
      return kFloats<FloatTable<Code, kType>>;
    }
  }
};

const FloatFunctions& FloatsOf(const Layer& layer, const RowRun& run) {
  return layer.weights.codebook_type == CodebookType::kInt8
             ? kByClass<FloatChoice<CodebookType::kInt8>>.of[run.row_class]
             : kByClass<FloatChoice<CodebookType::kFloat16>>.of[run.row_class];
}

// ---- activations

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

void PrepareFloats(const Layer& layer, const void* x, FloatType type, int64_t M, void* out) {
  const int64_t K = layer.weights.K;
  for (int64_t m = 0; m < M; ++m) {
    float* prepared = static_cast<float*>(out) + m * ExactFloats(K);
    const char* token = static_cast<const char*>(x) + m * K * FloatBytes(type);
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    EachGroup(K, [&](int64_t first, int columns) {
      const Floats32 f = ToPrepared(ScaledColumns(layer, token, type, first, columns));
      for (int i = 0; i < 4; ++i) {
        sum[i] = _mm256_add_ps(sum[i], f.v[i]);
        _mm256_store_ps(prepared + 8 * i, f.v[i]);
      }
      prepared += kGroup;
    });
    *prepared = Sum(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
  }
}

// ---- several tokens

constexpr int kFloatTokens = 4;  // the micro kernel holds 4 x 3 sums in 12 of the 16 registers
constexpr int kMicroRows = 3;

template <int kTokens, int kRows>
void MicroFloats(const float* x, int64_t x_stride, const float* tile, int64_t columns, float* sums,
                 int64_t sums_stride) {
  __m256 sum[kRows][kFloatTokens];
  for (auto& row : sum) {
    for (__m256& s : row) s = _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < columns; k += 8) {
    __m256 weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = _mm256_load_ps(tile + r * columns + k);
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

constexpr MicroFunction<float, float> kFloatMicros[kFloatTokens][kMicroRows] = {
    {MicroFloats<1, 1>, MicroFloats<1, 2>, MicroFloats<1, 3>},
    {MicroFloats<2, 1>, MicroFloats<2, 2>, MicroFloats<2, 3>},
    {MicroFloats<3, 1>, MicroFloats<3, 2>, MicroFloats<3, 3>},
    {MicroFloats<4, 1>, MicroFloats<4, 2>, MicroFloats<4, 3>}};

struct Exact {
  using Value = float;
  using Sum = float;
  using End = RowEnd;
  static constexpr int64_t kHeader = 0, kTokens = kFloatTokens, kRows = kMicroRows;
  // 24 rows of 4 superblocks take 96 KiB, and stay in the L2 cache for all tokens; the 16 KiB of 4 tokens stay in the
  // L1 cache for all rows.
  static constexpr int64_t kBlocks = 4;
  static constexpr int64_t kFewTokens = 3;  // one after the other they are as fast as together

  static int64_t Stride(int64_t K) { return ExactFloats(K); }
  static End EndOf(const Layer& layer, const RowRun& run, int64_t row) { return skim::EndOf(layer, run, row); }
  static int64_t DotTokens(int64_t) { return 1; }
  static void Dot(const Layer& layer, const RowRun& run, int64_t begin, int64_t end, const float* prepared, int64_t,
                  void* y, FloatType type) {
    FloatsOf(layer, run).dot(layer, run, begin, end, prepared, y, type);
  }
  static void Decode(const Layer& layer, const RowRun& run, int64_t row, int64_t begin, int64_t end, float* out) {
    FloatsOf(layer, run).decode(run, row, layer.weights.K, begin, end, out);
  }
  static MicroFunction<float, float> Micro(int64_t tokens, int64_t rows) { return kFloatMicros[tokens - 1][rows - 1]; }
  static float Finish(const RowEnd& end, float product, const float* token, int64_t K) {
    return skim::Finish(end, product, token[PaddedColumns(K)]);
  }
};

void Gather(const Layer& layer, int64_t stored, void* y, FloatType type) {
  const int64_t K = layer.weights.K;
  const RowRun* run = RunOf(layer.runs, stored);
  const int64_t row = stored - run->first;
  auto* levels = ThreadScratch<float>(Scratch::kTile, PaddedColumns(K));
  FloatsOf(layer, *run).decode(*run, row, K, 0, Superblocks(K), levels);
  const RowEnd row_end = EndOf(layer, *run, row);
  EachGroup(K, [&](int64_t first, int columns) {
    Floats32 f;
    for (int i = 0; i < 4; ++i) {
      f.v[i] = _mm256_add_ps(_mm256_set1_ps(row_end.offset),
                             _mm256_mul_ps(_mm256_set1_ps(row_end.scale), _mm256_load_ps(levels + 8 * i)));
    }
    f = FromPrepared(f);
    MultiplyColumnScale(layer, first, columns, &f);
    StoreColumns(y, type, first, columns, f);
    levels += kGroup;
  });
}

}  // namespace

const Kernels& Avx2Kernels() {
  static const Kernels kernels{"avx2", {ExactBytes, PrepareFloats, Matmul<Exact>}, Avx2Integer(), Swiglu, Gather};
  return kernels;
}

}  // namespace skim
