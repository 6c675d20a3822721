// The AVX-512 kernels: exact float32 arithmetic. Integer arithmetic is in avx512_integer.cpp.
//
// Shifted into their places in 32-bit lanes, codes of up to 4 bits are looked up as floats, and those of any width if
// the codebook is float16; int8 levels of other widths are looked up as bytes, and widened.
//
// 32-bit lane d of byte b holds column 4 d + b of each 64: activations are prepared in that order.
//
// Nothing in this file may have external linkage but `Avx512Kernels` (see avx2.h).
#include "avx512.h"

#include "swiglu.h"

namespace skim {
namespace {

// ---- levels as floats: 64 codes to 64 floats, 16 of each byte of the 32-bit lanes; `RowEnds` makes them a row's

struct Floats64 {
  __m512 v[4];
};

// 16 consecutive entries of a codebook, of which the first kCount are read; the others repeat them.
template <int kCount, typename T>
SKIM_INLINE __m512 LoadEntries(const T* codebook, int64_t entry) {
  __m512 floats;
  if constexpr (sizeof(T) == 1) {
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, codebook + entry, kCount);
    floats = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  } else {
    __m256i halves = _mm256_setzero_si256();
    std::memcpy(&halves, codebook + entry, 2 * kCount);
    floats = _mm512_cvtph_ps(halves);
  }
  if constexpr (kCount == 16) return floats;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(_mm512_and_si512(lane, _mm512_set1_epi32(kCount - 1)), floats);
}

// Free codebooks of up to 4 bits, and float16 ones of any width.
template <typename CodeOfRow, CodebookType kType>
struct FloatTable {
  using Code = CodeOfRow;
  using Entry = std::conditional_t<kType == CodebookType::kInt8, int8_t, uint16_t>;
  static constexpr int kBits = Code::kLevelBits;
  static constexpr int kRegisters = kBits <= 4 ? 1 : 1 << (kBits - 4);
  __m512 tables[kRegisters];

  SKIM_INLINE FloatTable(const RowRun& run, int64_t row) {
    constexpr int count = kBits <= 4 ? 1 << kBits : 16;
    const RowLevels<Code, Entry> levels(run, row);
    for (int i = 0; i < kRegisters; ++i) tables[i] = LoadEntries<count>(levels.data(), 16 * i);
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

template <typename CodeOfRow>
struct WideTable {
  using Code = CodeOfRow;
  ByteTable<Code::kLevelBits> table;

  SKIM_INLINE WideTable(const RowRun& run, int64_t row) : table(RowLevels<Code, int8_t>(run, row).data()) {}
  SKIM_INLINE Floats64 operator()(__m512i codes) const { return Widen(table(codes)); }
};

template <int kBits>
struct FloatAffine {
  using Code = RowCode<kBits>;

  SKIM_INLINE FloatAffine(const RowRun&, int64_t) {}
  SKIM_INLINE Floats64 operator()(__m512i codes) const {
    return Widen(_mm512_sub_epi8(CleanCodes<kBits>(codes), _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1)))));
  }
};

// ---- sums

// The sums of the lanes of four registers.
SKIM_INLINE __m128 SumLanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
  const __m512 all =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)), _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
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

// ---- rows

// One token: its products with `count` rows from `row` on, to the places from `at` on.
template <typename Levels>
void DotFloats(const RowRun& run, int64_t row, int64_t count, int64_t K, const float* token, int64_t at,
               Lanes<float>& lanes) {
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K), superblocks = Superblocks(K);
  for (int64_t r = 0; r < count; ++r) {
    const Levels levels(run, row + r);
    const float* x = token;
    __m512 sums[2][4];
    for (auto& half : sums) {
      for (__m512& sum : half) sum = _mm512_setzero_ps();
    }
    EachCodes<typename Levels::Code>(run.codes + (row + r) * row_bytes, K, 0, superblocks,
                                     [&](__m512i codes, auto parity) __attribute__((always_inline)) {
                                       const Floats64 floats = levels(codes);
                                       for (int i = 0; i < 4; ++i) {
                                         __m512& sum = sums[parity][i];
                                         sum = _mm512_fmadd_ps(floats.v[i], _mm512_load_ps(x + 16 * i), sum);
                                       }
                                       x += kGroup;
                                     });
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) sum = _mm512_add_ps(sum, _mm512_add_ps(sums[0][i], sums[1][i]));
    _mm512_store_ps(lanes.of_row[at + r], sum);
  }
}

// The levels of the superblocks begin..end of a row, unscaled, in prepared order.
template <typename Levels>
void DecodeFloats(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, float* out) {
  const Levels levels(run, row);
  EachCodes<typename Levels::Code>(run.codes + row * RowBytes(Levels::Code::kBits, K), K, begin, end,
                                   [&](__m512i codes, auto) __attribute__((always_inline)) {
                                     const Floats64 floats = levels(codes);
                                     for (int i = 0; i < 4; ++i) _mm512_store_ps(out + 16 * i, floats.v[i]);
                                     out += kGroup;
                                   });
}

struct FloatFunctions {
  void (*dot)(const RowRun&, int64_t row, int64_t count, int64_t K, const float* x, int64_t at, Lanes<float>& lanes);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, float* out);
};

template <typename Levels>
constexpr FloatFunctions kFloats{DotFloats<Levels>, DecodeFloats<Levels>};

constexpr CodebookType kInt8 = CodebookType::kInt8, kHalf = CodebookType::kFloat16;
// Of int8 levels that are looked up by more than 4 bits, the bytes are.
template <CodebookType kType>
struct FloatChoice {
  template <int kClass>
  static constexpr FloatFunctions Of() {
    using Code = CodeOfClass<kClass>;
    if constexpr (IsAffine(kClass)) {
      return kFloats<FloatAffine<Code::kBits>>;
    } else if constexpr (kType == kInt8 && Code::kLevelBits > 4) {
      return kFloats<WideTable<Code>>;
    } else {
      return kFloats<FloatTable<Code, kType>>;
    }
  }
};

const FloatFunctions& FloatsOf(const Layer& layer, const RowRun& run) {
  return layer.weights.codebook_type == kHalf ? kByClass<FloatChoice<kHalf>>.of[run.row_class]
                                              : kByClass<FloatChoice<kInt8>>.of[run.row_class];
}

// ---- activations

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
    for (int64_t k = 0; k < columns; k += kGroup) {
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

constexpr int64_t kFloatBlocks = 2;  // superblocks decoded at a time: 32 KiB for 16 rows

// Sums of the products of kTokens tokens, `x_stride` floats apart, with four rows of a tile over `columns` columns,
// added to sums[token * kTileRows].
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

void TileFloats(const Layer& layer, const float* x, int64_t M, int64_t begin, int64_t rows, void* y, FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K, stride = ExactFloats(K);
  auto* tile = ThreadScratch<float>(Scratch::kTile, kTileRows * kFloatBlocks * kSuperblockColumns);
  auto* sums = ThreadScratch<float>(Scratch::kSums, M * kTileRows);
  std::memset(sums, 0, M * kTileRows * sizeof *sums);
  EachPiece(K, kFloatBlocks, [&](int64_t block, int64_t end, int64_t first, int64_t columns) {
    EachTileRow(layer, begin, rows, kMicroRows, [&](int64_t r, const RowRun& run, int64_t row) {
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

constexpr int64_t kFewTokens = 3;  // for which decoding again costs less than a tile

void MatmulFloats(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                  FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K;
  const auto* x = static_cast<const float*>(prepared);
  Lanes<float> lanes;
  EachTile(layer, begin, end, [&](int64_t first, int64_t rows) {
    if (M > kFewTokens) {
      TileFloats(layer, x, M, first, rows, y, type);
      return;
    }
    const RowEnds ends(layer, first, rows);
    for (int64_t m = 0; m < M; ++m) {
      const float* token = x + m * ExactFloats(K);
      EachRun(layer, first, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t at) {
        FloatsOf(layer, run).dot(run, row, count, K, token, at, lanes);
      });
      char* out = static_cast<char*>(y) + m * N * FloatBytes(type);
      ends.Store(SumRows(lanes), 1.0f, token[PaddedColumns(K)], out, type);
    }
  });
}

void Gather(const Layer& layer, int64_t stored, void* y, FloatType type) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  const RowRun* run = RunOf(layer.runs, stored);
  const int64_t row = stored - run->first;
  auto* levels = ThreadScratch<float>(Scratch::kTile, columns);
  FloatsOf(layer, *run).decode(*run, row, K, 0, Superblocks(K), levels);
  for (int64_t k = 0; k < columns; k += kGroup) {
    __m512 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm512_load_ps(levels + k + 16 * i);
    TransposeQuads(v);
    TransposeLanes(v);
    for (int i = 0; i < 4; ++i) _mm512_store_ps(levels + k + 16 * i, v[i]);
  }
  StoreWeights(layer, *run, row, levels, y, type);
}

}  // namespace

const Kernels& Avx512Kernels() {
  static const Kernels kernels{"avx512", {ExactBytes, PrepareFloats, MatmulFloats}, Avx512Integer(), Swiglu, Gather};
  return kernels;
}

}  // namespace skim
