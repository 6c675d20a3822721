// The integer arithmetic of the AVX2 kernels.
//
// A register of 32 codes becomes one of 32 levels, unsigned bytes. Taken for 16 words, its even and odd bytes come out
// with one instruction each, and _mm256_madd_epi16 multiplies them with activations of 16 bits and adds pairs: six
// instructions for 32 columns. The two digits of the activations would take nine, as the sum of two products of bytes
// fills 16 bits, and has to be widened at once. A prepared token has
// q of the 16 even columns, then of the 16 odd ones of every group of 32 columns.
//
// Nothing in this file may have external linkage but `Avx2Integer` (see avx2.h).
#include <limits>

#include "avx2.h"
#include "integer.h"

namespace skim {
namespace {

constexpr int kHeader = kAlignment / sizeof(int16_t);  // words before a token's columns

// A 32-bit lane takes an eighth of the products, and is good for those of as many superblocks.
constexpr int64_t kFlushBlocks = 8;
static_assert(255 * int64_t{32512} * kFlushBlocks * kSuperblockColumns / 8 <= std::numeric_limits<int32_t>::max());

constexpr int64_t IntegerWords(int64_t K) { return kHeader + PaddedColumns(K); }

// ---- levels: 32 codes to 32 unsigned bytes; `IntegerEnd` knows what they are too large by

template <typename CodeOfRow>
struct UnsignedTable {
  using Code = CodeOfRow;
  static constexpr int kBits = Code::kLevelBits;
  static constexpr int kTables = kBits <= 4 ? 1 : 1 << (kBits - 4);
  static constexpr int kDotRows = kTables == 1 ? 2 : 1;  // as many as have place in the registers
  __m256i tables[kTables];

  SKIM_INLINE UnsignedTable(const RowRun& run, int64_t row) {
    const RowLevels<Code, int8_t> levels(run, row);
    for (int i = 0; i < kTables; ++i) {
      __m128i bytes = _mm_setzero_si128();
      std::memcpy(&bytes, levels.data() + 16 * i, kBits < 4 ? 1 << kBits : 16);
      tables[i] = _mm256_broadcastsi128_si256(_mm_xor_si128(bytes, _mm_set1_epi8(-128)));
    }
  }

  SKIM_INLINE __m256i operator()(__m256i codes) const { return Lookup<kBits>(tables, codes); }
};

template <int kBits>
struct UnsignedAffine {
  using Code = RowCode<kBits>;
  static constexpr int kDotRows = 2;

  SKIM_INLINE UnsignedAffine(const RowRun&, int64_t) {}

  SKIM_INLINE __m256i operator()(__m256i codes) const { return codes; }
};

SKIM_INLINE __m256i EvenBytes(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)); }
SKIM_INLINE __m256i OddBytes(__m256i bytes) { return _mm256_srli_epi16(bytes, 8); }

SKIM_INLINE __m256i Load(const int16_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

// Adds to a sum right away: GCC would change the order of integer additions, and keep the products in memory till then.
SKIM_INLINE void Accumulate(__m256i& sum, __m256i products) {
  sum = _mm256_add_epi32(sum, products);
  asm("" : "+x"(sum));
}

// ---- the ends of rows

struct IntegerEnd : RowEnd {
  double zero;  // the unsigned level that stands for 0
};

IntegerEnd EndOf(const Layer& layer, const RowRun& run, int64_t row) {
  const double zero = IsAffine(run.row_class) ? 1 << (ClassBits(run.row_class) - 1) : 128;
  return {MakeRowEnd(layer, run, row), zero};
}

// `D`: the sum with unsigned levels.
SKIM_INLINE float FinishUnsigned(const IntegerEnd& end, double D, const IntegerToken& token) {
  return FinishInteger(end, D - end.zero * SumOfDigits(token.high_sum, token.low_sum), token);
}

// The sum of pairs of lanes, exact.
SKIM_INLINE __m256d ToDoubles(__m256i lanes) {
  return _mm256_add_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(lanes)),
                       _mm256_cvtepi32_pd(_mm256_extracti128_si256(lanes, 1)));
}

SKIM_INLINE double Sum(__m256d v) {
  const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

// ---- few tokens: multiplied while rows are decoded

// kTokens tokens and kRows rows, the second one `apart` behind `row`, decoded and multiplied at once.
template <typename Levels, int kRows, int kTokens>
SKIM_INLINE void DotIntegers(const Layer& layer, const RowRun& run, int64_t row, int64_t apart, const int16_t* tokens,
                             void* y, FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K, stride = IntegerWords(K);
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K), superblocks = Superblocks(K);
  const Levels first(run, row), last(run, row + (kRows - 1) * apart);
  const int16_t* x = tokens + kHeader;
  __m256d totals[kRows][kTokens];
  for (auto& of_row : totals) {
    for (__m256d& total : of_row) total = _mm256_setzero_pd();
  }
  for (int64_t block = 0; block < superblocks; block += kFlushBlocks) {
    __m256i sums[kRows][kTokens];
    for (auto& of_row : sums) {
      for (__m256i& sum : of_row) sum = _mm256_setzero_si256();
    }
    EachCodes<typename Levels::Code, kRows>(
        run.codes + row * row_bytes, apart * row_bytes, K, block, Min(block + kFlushBlocks, superblocks),
        [&](const __m256i(&codes)[kRows]) __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int r = 0; r < kRows; ++r) {
            const __m256i levels = r == 0 ? first(codes[r]) : last(codes[r]);
            const __m256i even = EvenBytes(levels), odd = OddBytes(levels);
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t) {
              Accumulate(sums[r][t], _mm256_add_epi32(_mm256_madd_epi16(even, Load(x + t * stride)),
                                                      _mm256_madd_epi16(odd, Load(x + t * stride + kGroup / 2))));
            }
          }
          x += kGroup;
        });
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) totals[r][t] = _mm256_add_pd(totals[r][t], ToDoubles(sums[r][t]));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const IntegerEnd end = EndOf(layer, run, row + r * apart);
    for (int t = 0; t < kTokens; ++t) {
      const float value = FinishUnsigned(end, Sum(totals[r][t]), MeaningOf(tokens + t * stride));
      StoreFloat(y, type, t * N + end.n, value);
    }
  }
}

// The same for rows begin..end of a run.
template <typename Levels, int kTokens>
void DotIntegerRows(const Layer& layer, const RowRun& run, int64_t begin, int64_t end, const int16_t* tokens, void* y,
                    FloatType type) {
  if constexpr (kTokens <= 2 && Levels::kDotRows == 2) {
    // Two rows share the loads of activations. They come from the two halves of all rows: the CPU reads ahead in two
    // long streams of codes, but not in two rows side by side, which took more than twice the time.
    const int64_t half = (end - begin) / 2;
    for (int64_t row = begin; row < begin + half; ++row) {
      DotIntegers<Levels, 2, kTokens>(layer, run, row, half, tokens, y, type);
    }
    begin += 2 * half;
  }
  for (int64_t row = begin; row < end; ++row) DotIntegers<Levels, 1, kTokens>(layer, run, row, 0, tokens, y, type);
}

// The levels of the superblocks begin..end of a row as words, in prepared order.
template <typename Levels>
void DecodeIntegers(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, int16_t* out) {
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K);
  const Levels levels(run, row);
  EachCodes<typename Levels::Code, 1>(run.codes + row * row_bytes, row_bytes, K, begin, end,
                                      [&](const __m256i(&codes)[1]) __attribute__((always_inline)) {
                                        const __m256i w = levels(codes[0]);
                                        auto* words = reinterpret_cast<__m256i*>(out);
                                        _mm256_store_si256(words, EvenBytes(w));
                                        _mm256_store_si256(words + 1, OddBytes(w));
                                        out += kGroup;
                                      });
}

struct IntegerFunctions {
  using Dot = void (*)(const Layer&, const RowRun&, int64_t begin, int64_t end, const int16_t* tokens, void* y,
                       FloatType);
  Dot dot, dot2, dot4;  // with 1, 2 and 4 tokens
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, int16_t* out);
};

template <typename Levels>
constexpr IntegerFunctions kIntegers{DotIntegerRows<Levels, 1>, DotIntegerRows<Levels, 2>, DotIntegerRows<Levels, 4>,
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

// Groups of words from the order of their columns to prepared order.
void ToPrepared(int16_t* words, int64_t count) {
  for (int64_t k = 0; k < count; k += kGroup) {
    auto* out = reinterpret_cast<__m256i*>(words + k);
    const __m256i a = Load(words + k), b = Load(words + k + kGroup / 2);
    const __m256i even = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16),
                                            _mm256_srai_epi32(_mm256_slli_epi32(b, 16), 16));
    const __m256i odd = _mm256_packs_epi32(_mm256_srai_epi32(a, 16), _mm256_srai_epi32(b, 16));
    // Packing works within halves: [a 0-3, b 0-3 | a 4-7, b 4-7].
    _mm256_store_si256(out, _mm256_permute4x64_epi64(even, 0xd8));
    _mm256_store_si256(out + 1, _mm256_permute4x64_epi64(odd, 0xd8));
  }
}

void PrepareIntegers(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  auto* floats = ThreadScratch<float>(Scratch::kToken, columns);
  auto* out = static_cast<int16_t*>(prepared);
  for (int64_t m = 0; m < M; ++m, out += IntegerWords(K)) {
    const char* token = static_cast<const char*>(x) + m * K * FloatBytes(type);
    float* group = floats;
    EachGroup(K, [&](int64_t first, int present) {
      const Floats32 f = ScaledColumns(layer, token, type, first, present);
      for (int i = 0; i < 4; ++i) _mm256_store_ps(group + 8 * i, f.v[i]);
      group += kGroup;
    });
    const IntegerToken meaning = QuantizeToken(floats, columns, out + kHeader);
    std::memcpy(out, &meaning, sizeof meaning);
    ToPrepared(out + kHeader, columns);
  }
}

// ---- several tokens

constexpr int kIntegerTokens = 4;
constexpr int kMicroRows = 3;

// Each sum gets at most the products of kFlushBlocks superblocks. Only the unrolling keeps the sums in registers.
template <int kTokens, int kRows>
void MicroIntegers(const int16_t* x, int64_t x_stride, const int16_t* tile, int64_t columns, double* sums,
                   int64_t sums_stride) {
  __m256i sum[kRows][kIntegerTokens];
#pragma GCC unroll 3
  for (auto& row : sum) {
#pragma GCC unroll 4
    for (__m256i& s : row) s = _mm256_setzero_si256();
  }
  for (int64_t k = 0; k < columns; k += 16) {
    __m256i weights[kRows];
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) weights[r] = Load(tile + r * columns + k);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const __m256i token = Load(x + t * x_stride + k);
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) Accumulate(sum[r][t], _mm256_madd_epi16(weights[r], token));
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
    const __m256d ab = _mm256_hadd_pd(ToDoubles(sum[r][0]), ToDoubles(sum[r][1]));
    const __m256d cd = _mm256_hadd_pd(ToDoubles(sum[r][2]), ToDoubles(sum[r][3]));
    const __m256d total = _mm256_add_pd(_mm256_permute2f128_pd(ab, cd, 0x20), _mm256_permute2f128_pd(ab, cd, 0x31));
    double* out = sums + r * sums_stride;
    _mm256_store_pd(out, _mm256_add_pd(_mm256_load_pd(out), total));
  }
}

constexpr MicroFunction<int16_t, double> kIntegerMicros[kIntegerTokens][kMicroRows] = {
    {MicroIntegers<1, 1>, MicroIntegers<1, 2>, MicroIntegers<1, 3>},
    {MicroIntegers<2, 1>, MicroIntegers<2, 2>, MicroIntegers<2, 3>},
    {MicroIntegers<3, 1>, MicroIntegers<3, 2>, MicroIntegers<3, 3>},
    {MicroIntegers<4, 1>, MicroIntegers<4, 2>, MicroIntegers<4, 3>}};

struct Integer {
  using Value = int16_t;
  using Sum = double;
  using End = IntegerEnd;
  static constexpr int64_t kHeader = skim::kHeader, kTokens = kIntegerTokens, kRows = kMicroRows;
  static constexpr int64_t kFewTokens = 8;
  static constexpr int64_t kBlocks = kFlushBlocks;  // 96 KiB of rows, as in exact arithmetic

  static int64_t Stride(int64_t K) { return IntegerWords(K); }
  static End EndOf(const Layer& layer, const RowRun& run, int64_t row) { return skim::EndOf(layer, run, row); }
  static int64_t DotTokens(int64_t M) { return M >= 4 ? 4 : M >= 2 ? 2 : 1; }
  static void Dot(const Layer& layer, const RowRun& run, int64_t begin, int64_t end, const int16_t* prepared,
                  int64_t tokens, void* y, FloatType type) {
    const IntegerFunctions& f = kIntegersOf[run.row_class];
    (tokens == 4 ? f.dot4 : tokens == 2 ? f.dot2 : f.dot)(layer, run, begin, end, prepared, y, type);
  }
  static void Decode(const Layer& layer, const RowRun& run, int64_t row, int64_t begin, int64_t end, int16_t* out) {
    kIntegersOf[run.row_class].decode(run, row, layer.weights.K, begin, end, out);
  }
  static MicroFunction<int16_t, double> Micro(int64_t tokens, int64_t rows) {
    return kIntegerMicros[tokens - 1][rows - 1];
  }
  static float Finish(const IntegerEnd& end, double D, const int16_t* token, int64_t) {
    return FinishUnsigned(end, D, MeaningOf(token));
  }
};

}  // namespace

Arithmetic Avx2Integer() { return {IntegerBytes, PrepareIntegers, Matmul<Integer>}; }

}  // namespace skim
