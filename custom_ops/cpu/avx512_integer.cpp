// The integer arithmetic of the AVX-512 kernels: levels as unsigned bytes times the two digits of the activations,
// _mm512_dpbusd_epi32. A prepared token has the high digits of all columns, in their order, then the low ones.
//
// Nothing in this file may have external linkage but `Avx512Integer` (see avx2.h).
#include "avx512.h"
#include "integer.h"

namespace skim {
namespace {

struct IntegerView {
  IntegerToken token;
  const int8_t *high, *low;

  IntegerView(const void* prepared, int64_t m, int64_t K) {
    const int8_t* start = static_cast<const int8_t*>(prepared) + m * IntegerBytes(K);
    token = MeaningOf(start);
    high = start + kAlignment;
    low = high + PaddedColumns(K);
  }
};

// ---- levels: 64 codes to 64 unsigned bytes; `RowEnds` knows what they are too large by

template <typename CodeOfRow>
struct UnsignedTable {
  using Code = CodeOfRow;
  using Table = ByteTable<Code::kLevelBits>;
  Table table;

  static SKIM_INLINE Table TableOf(const RowRun& run, int64_t row) {
    return Table(RowLevels<Code, int8_t>(run, row).data());
  }

  SKIM_INLINE UnsignedTable(const RowRun& run, int64_t row) : table(TableOf(run, row)) {
    for (__m512i& entries : table.tables) entries = _mm512_xor_si512(entries, _mm512_set1_epi8(-128));
  }
  SKIM_INLINE __m512i operator()(__m512i codes) const { return table(codes); }
};

template <int kBits>
struct UnsignedAffine {
  using Code = RowCode<kBits>;

  SKIM_INLINE UnsignedAffine(const RowRun&, int64_t) {}
  SKIM_INLINE __m512i operator()(__m512i codes) const { return CleanCodes<kBits>(codes); }
};

// ---- sums

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

SKIM_INLINE __m512i SumRows(const Lanes<int32_t>& lanes) {
  const auto four = [&](int r) __attribute__((always_inline)) {
    return SumLanes(Load(lanes.of_row[r]), Load(lanes.of_row[r + 1]), Load(lanes.of_row[r + 2]),
                    Load(lanes.of_row[r + 3]));
  };
  const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(4), 1);
  const __m256i upper = _mm256_inserti128_si256(_mm256_castsi128_si256(four(8)), four(12), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}

// The results of one token from the sums [16] of unsigned levels times digits; `y` is the token's.
SKIM_INLINE void StoreIntegers(const RowEnds& ends, __m512i high, __m512i low, const IntegerToken& token, void* y,
                               FloatType type) {
  const __m512i zeros = _mm512_load_si512(ends.zero);
  high = _mm512_sub_epi32(high, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(token.high_sum)));
  low = _mm512_sub_epi32(low, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(token.low_sum)));
  const auto floats = [](__m256i h, __m256i l) {
    const __m512d high_part = _mm512_mul_pd(_mm512_cvtepi32_pd(h), _mm512_set1_pd(kDigitBase));
    return _mm512_cvtpd_ps(_mm512_add_pd(high_part, _mm512_cvtepi32_pd(l)));
  };
  const __m256 lower = floats(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
  const __m256 upper = floats(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1));
  const __m512 products = _mm512_insertf32x8(_mm512_castps256_ps512(lower), upper, 1);
  ends.Store(products, token.scale, token.sum, y, type);
}

// ---- rows

// The sums of up to 16 rows over both digits of a token.
struct DigitLanes {
  Lanes<int32_t> high, low;
};

// kTokens tokens, `x_stride` bytes apart, and `count` rows from `row` on: their sums, to the places from `at` on.
template <typename Levels, int kTokens>
void DotIntegers(const RowRun& run, int64_t row, int64_t count, int64_t K, const IntegerView& x, int64_t x_stride,
                 int64_t at, DigitLanes* lanes) {
  // One token has two sums of each kind, since few would wait for themselves. Several share their loads between two
  // rows.
  constexpr int kChains = kTokens == 1 ? 2 : 1, kRows = kTokens == 1 ? 1 : 2;
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K), superblocks = Superblocks(K);
  for (int64_t r = 0; r < count; r += kRows) {
    const int64_t other = Min(r + kRows - 1, count - 1);  // an odd last row is its own neighbour
    const Levels first(run, row + r), second(run, row + other);
    const uint8_t* rows[kRows];
    rows[0] = run.codes + (row + r) * row_bytes;
    rows[kRows - 1] = run.codes + (row + other) * row_bytes;
    int64_t k = 0;
    Int32x16 high[kRows][kTokens][kChains] = {}, low[kRows][kTokens][kChains] = {};
    EachCodesOf<typename Levels::Code>(rows, K, 0, superblocks,
                                       [&](const __m512i(&codes)[kRows], auto parity) __attribute__((always_inline)) {
                                         constexpr int chain = decltype(parity)::value % kChains;
                                         __m512i bytes[kRows];
                                         bytes[0] = first(codes[0]);
                                         if constexpr (kRows == 2) bytes[1] = second(codes[1]);
                                         for (int t = 0; t < kTokens; ++t) {
                                           const __m512i x_high = Load(x.high + t * x_stride + k);
                                           const __m512i x_low = Load(x.low + t * x_stride + k);
                                           for (int i = 0; i < kRows; ++i) {
                                             Int32x16 &h = high[i][t][chain], &l = low[i][t][chain];
                                             h = DotBytes(h, bytes[i], x_high);
                                             l = DotBytes(l, bytes[i], x_low);
                                           }
                                         }
                                         k += kGroup;
                                       });
    for (int i = 0; i < kRows; ++i) {
      const int64_t place = at + (i == 0 ? r : other);
      for (int t = 0; t < kTokens; ++t) {
        if constexpr (kChains == 2) {
          high[i][t][0] += high[i][t][1];
          low[i][t][0] += low[i][t][1];
        }
        _mm512_store_si512(lanes[t].high.of_row[place], reinterpret_cast<__m512i>(high[i][t][0]));
        _mm512_store_si512(lanes[t].low.of_row[place], reinterpret_cast<__m512i>(low[i][t][0]));
      }
    }
  }
}

// The levels of the superblocks begin..end of a row as unsigned bytes.
template <typename Levels>
void DecodeIntegers(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, uint8_t* out) {
  const Levels levels(run, row);
  EachCodes<typename Levels::Code>(run.codes + row * RowBytes(Levels::Code::kBits, K), K, begin, end,
                                   [&](__m512i codes, auto) __attribute__((always_inline)) {
                                     _mm512_store_si512(out, levels(codes));
                                     out += kGroup;
                                   });
}

constexpr int kDotTokens = 4;  // at most, for each of which a row is multiplied as it is decoded

struct IntegerFunctions {
  void (*dot[kDotTokens])(const RowRun&, int64_t row, int64_t count, int64_t K, const IntegerView& x, int64_t x_stride,
                          int64_t at, DigitLanes* lanes);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, uint8_t* out);
};

template <typename Levels>
constexpr IntegerFunctions kIntegers{
    {DotIntegers<Levels, 1>, DotIntegers<Levels, 2>, DotIntegers<Levels, 3>, DotIntegers<Levels, 4>},
    DecodeIntegers<Levels>};

struct IntegerChoice {
  template <int kClass>
  static constexpr IntegerFunctions Of() {
    using Code = CodeOfClass<kClass>;
    if constexpr (IsAffine(kClass)) {
      return kIntegers<UnsignedAffine<Code::kBits>>;
    } else {
      return kIntegers<UnsignedTable<Code>>;
    }
  }
};
constexpr auto& kIntegersOf = kByClass<IntegerChoice>.of;

// ---- activations

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

// ---- many tokens: a tile of rows is decoded, then multiplied with all of them

constexpr int64_t kIntegerBlocks = 8;  // superblocks decoded at a time: 32 KiB for 16 rows

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
  for (int64_t k = 0; k < columns; k += kGroup) {
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

void TileIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t rows, void* y,
                  FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K, stride = IntegerBytes(K);
  auto* tile = ThreadScratch<uint8_t>(Scratch::kTile, kTileRows * kIntegerBlocks * kSuperblockColumns);
  auto* sums = ThreadScratch<int32_t>(Scratch::kSums, M * 2 * kTileRows);
  std::memset(sums, 0, M * 2 * kTileRows * sizeof *sums);
  const IntegerView x(prepared, 0, K);
  EachPiece(K, kIntegerBlocks, [&](int64_t block, int64_t end, int64_t first, int64_t columns) {
    EachTileRow(layer, begin, rows, kMicroRows, [&](int64_t r, const RowRun& run, int64_t row) {
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
    StoreIntegers(ends, _mm512_load_si512(of_token), _mm512_load_si512(of_token + kTileRows),
                  IntegerView(prepared, m, K).token, out, type);
  }
}

// ---- few tokens: rows are multiplied as they are decoded

constexpr int64_t kFewTokens = 8;

void FewIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t rows, DigitLanes* lanes,
                 void* y, FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K;
  const RowEnds ends(layer, begin, rows);
  for (int64_t m = 0; m < M; m += kDotTokens) {
    const int64_t tokens = Min(M - m, kDotTokens);
    const IntegerView x(prepared, m, K);
    EachRun(layer, begin, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t at) {
      kIntegersOf[run.row_class].dot[tokens - 1](run, row, count, K, x, IntegerBytes(K), at, lanes);
    });
    for (int64_t t = 0; t < tokens; ++t) {
      char* out = static_cast<char*>(y) + (m + t) * N * FloatBytes(type);
      StoreIntegers(ends, SumRows(lanes[t].high), SumRows(lanes[t].low), IntegerView(prepared, m + t, K).token, out,
                    type);
    }
  }
}

void MatmulIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                    FloatType type) {
  DigitLanes lanes[kDotTokens];
  EachTile(layer, begin, end, [&](int64_t first, int64_t rows) {
    if (M > kFewTokens) {
      TileIntegers(layer, prepared, M, first, rows, y, type);
    } else {
      FewIntegers(layer, prepared, M, first, rows, lanes, y, type);
    }
  });
}

}  // namespace

Arithmetic Avx512Integer() { return {IntegerBytes, PrepareIntegers, MatmulIntegers}; }

}  // namespace skim
