// The NEON kernels for every aarch64 CPU; those with instructions for dot products have faster integer ones.
//
//     integer: levels as signed bytes times the two digits of the activations, products of 16 bits added up in pairs
//     exact: a level is known by 16 bits, the upper half of a small whole number's float or a float16. Each of their
//            bytes is looked up; put together they are widened by one instruction
#include "neon_integer.h"
#include "swiglu.h"

namespace skim {
namespace {

// Two products of a level and a digit, 2 * 128 * 127 at most, fit into 16 bits.
SKIM_INLINE int32x4_t MultiplyLong(int32x4_t sums, int8x16_t row, int8x16_t digit) {
  const int16x8_t products = vmull_s8(vget_low_s8(row), vget_low_s8(digit));
  return vpadalq_s16(sums, vmlal_high_s8(products, row, digit));
}

using LongProducts = RowProducts<MultiplyLong, 2>;

// ---- levels as floats: 16 codes to 16 floats; `RowEnd` makes them a row's

struct Floats16 {
  float32x4_t v[4];
};

SKIM_INLINE Floats16 Widen(int8x16_t bytes) {
  const int16x8_t lower = vmovl_s8(vget_low_s8(bytes)), upper = vmovl_high_s8(bytes);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lower))), vcvtq_f32_s32(vmovl_high_s16(lower)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(upper))), vcvtq_f32_s32(vmovl_high_s16(upper))}};
}

enum class Entries { kInt8, kHalf, kAffine };

// 16 entries of a table of 2^kBits from `first` on, in 16 bits each; those of a smaller one repeated. The codebook is
// not read for even levels.
template <int kBits, Entries kEntries, typename T>
SKIM_INLINE uint16x8x2_t LoadEntries(const T* codebook, int64_t first) {
  constexpr int count = kBits < 4 ? 1 << kBits : 16;
  if constexpr (kEntries == Entries::kHalf) {
    const uint16_t* p = codebook + first;
    if constexpr (count == 16) return {{vld1q_u16(p), vld1q_u16(p + 8)}};
    const uint16x8_t repeated = vreinterpretq_u16_u8(Repeat<Min(2 * count, 16)>(p));
    return {{repeated, repeated}};
  } else {
    int8x16_t bytes;
    if constexpr (kEntries == Entries::kInt8) {
      bytes = vreinterpretq_s8_u8(Repeat<count>(codebook + first));
    } else {
      static_assert(kBits <= 4);
      constexpr int8_t codes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      bytes = vsubq_s8(vandq_s8(vld1q_s8(codes), vdupq_n_s8(count - 1)), vdupq_n_s8(count / 2));
    }
    const Floats16 f = Widen(bytes);
    const auto upper_halves = [](float32x4_t a, float32x4_t b) __attribute__((always_inline)) {
      return vuzp2q_u16(vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b));
    };
    return {{upper_halves(f.v[0], f.v[1]), upper_halves(f.v[2], f.v[3])}};
  }
}

template <typename CodeOfRow, Entries kEntries>
struct FloatTable {
  using Code = CodeOfRow;
  using Entry = std::conditional_t<kEntries == Entries::kHalf, uint16_t, int8_t>;
  static constexpr int kBits = Code::kLevelBits, kClean = TableClean(kBits);
  ByteTable<kBits> low, high;  // the bytes of 16 bits

  SKIM_INLINE FloatTable(const RowRun& run, int64_t row) {
    const RowLevels<Code, Entry> levels(run, row);
    const auto fill = [&](ByteTable<kBits>& table, auto&& bytes) __attribute__((always_inline)) {
      table.Fill([&](int i) __attribute__((always_inline)) {
        const uint16x8x2_t entries = LoadEntries<kBits, kEntries>(levels.data(), 16 * i);
        return bytes(vreinterpretq_u8_u16(entries.val[0]), vreinterpretq_u8_u16(entries.val[1]));
      });
    };
    fill(low, [](uint8x16_t a, uint8x16_t b) __attribute__((always_inline)) { return vuzp1q_u8(a, b); });
    fill(high, [](uint8x16_t a, uint8x16_t b) __attribute__((always_inline)) { return vuzp2q_u8(a, b); });
  }

  SKIM_INLINE Floats16 operator()(uint8x16_t codes) const {
    const uint8x16_t l = low(codes), h = high(codes);
    const uint16x8_t lower = vreinterpretq_u16_u8(vzip1q_u8(l, h)), upper = vreinterpretq_u16_u8(vzip2q_u8(l, h));
    if constexpr (kEntries == Entries::kHalf) {
      const float16x8_t a = vreinterpretq_f16_u16(lower), b = vreinterpretq_f16_u16(upper);
      return {
          {vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a), vcvt_f32_f16(vget_low_f16(b)), vcvt_high_f32_f16(b)}};
    } else {
      const auto first = [](uint16x8_t v) __attribute__((always_inline)) {
        return vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16));
      };
      const auto second = [](uint16x8_t v)
                              __attribute__((always_inline)) { return vreinterpretq_f32_u32(vshll_high_n_u16(v, 16)); };
      return {{first(lower), second(lower), first(upper), second(upper)}};
    }
  }
};

// Signed bytes, converted.
template <typename Bytes>
struct WideBytes {
  using Code = typename Bytes::Code;
  static constexpr int kClean = Bytes::kClean;
  Bytes bytes;

  SKIM_INLINE WideBytes(const RowRun& run, int64_t row) : bytes(run, row) {}
  SKIM_INLINE Floats16 operator()(uint8x16_t codes) const {
    return Widen(vsubq_s8(bytes(codes), vdupq_n_s8(Bytes::kZero)));
  }
};

// ---- one token

template <typename Levels>
void DotFloats(const RowRun& run, int64_t row, int64_t count, int64_t K, const float* x, float* products) {
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K);
  for (int64_t r = 0; r < count; ++r) {
    const Levels levels(run, row + r);
    float32x4_t sums[4] = {};
    EachCodes<typename Levels::Code, Levels::kClean, 1>(
        run.codes + (row + r) * row_bytes, row_bytes, K, 0, Superblocks(K),
        [&](const uint8x16_t(&codes)[1], int64_t column) __attribute__((always_inline)) {
          const Floats16 floats = levels(codes[0]);
          for (int i = 0; i < 4; ++i) sums[i] = vfmaq_f32(sums[i], floats.v[i], vld1q_f32(x + column + 4 * i));
        });
    products[r] = vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
  }
}

// ---- several tokens: a tile of rows is decoded, then multiplied with all of them

constexpr int64_t kFloatBlocks = 2;  // superblocks decoded at a time: 32 KiB for 16 rows

// The levels of the superblocks begin..end of a row.
template <typename Levels>
void DecodeFloats(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, float* out) {
  const Levels levels(run, row);
  EachCodes<typename Levels::Code, Levels::kClean, 1>(
      run.codes + row * RowBytes(Levels::Code::kBits, K), 0, K, begin, end,
      [&](const uint8x16_t(&codes)[1], int64_t column) __attribute__((always_inline)) {
        const Floats16 floats = levels(codes[0]);
        for (int i = 0; i < 4; ++i) vst1q_f32(out + column + 4 * i, floats.v[i]);
      });
}

// Sums of the products of kTokens tokens, `stride` floats apart, with four rows of a tile over `columns` columns, added
// to sums[token * kTileRows].
template <int kTokens>
void MicroFloats(const float* x, int64_t stride, const float* tile, int64_t columns, float* sums) {
  float32x4_t of[kTokens][kMicroRows] = {};
  for (int64_t k = 0; k < columns; k += 4) {
    float32x4_t levels[kMicroRows];
    Unroll<kMicroRows>([&](auto r) __attribute__((always_inline)) { levels[r] = vld1q_f32(tile + r * columns + k); });
    Unroll<kTokens>([&](auto t) __attribute__((always_inline)) {
      const float32x4_t token = vld1q_f32(x + t * stride + k);
      Unroll<kMicroRows>([&](auto r)
                             __attribute__((always_inline)) { of[t][r] = vfmaq_f32(of[t][r], levels[r], token); });
    });
  }
  Unroll<kTokens>([&](auto t) __attribute__((always_inline)) {
    float* out = sums + t * kTileRows;
    const float32x4_t total = vpaddq_f32(vpaddq_f32(of[t][0], of[t][1]), vpaddq_f32(of[t][2], of[t][3]));
    vst1q_f32(out, vaddq_f32(vld1q_f32(out), total));
  });
}

constexpr int kFloatTokens = 4;
using FloatMicro = void (*)(const float*, int64_t, const float*, int64_t, float*);
constexpr FloatMicro kFloatMicros[kFloatTokens] = {MicroFloats<1>, MicroFloats<2>, MicroFloats<3>, MicroFloats<4>};

// ---- the table of entry points

struct FloatFunctions {
  void (*dot)(const RowRun&, int64_t row, int64_t count, int64_t K, const float* x, float* products);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, float* out);
};

template <typename Levels>
constexpr FloatFunctions kFloats{DotFloats<Levels>, DecodeFloats<Levels>};

// int8 levels that are looked up by more than 6 bits are converted, as are even ones of more than 4.
template <Entries kEntries>
struct FloatChoice {
  template <int kClass>
  static constexpr FloatFunctions Of() {
    using Code = CodeOfClass<kClass>;
    if constexpr (IsAffine(kClass)) {
      if constexpr (Code::kBits <= 4) return kFloats<FloatTable<Code, Entries::kAffine>>;
      if constexpr (Code::kBits > 4) return kFloats<WideBytes<SignedAffine<Code::kBits>>>;
    } else if constexpr (kEntries == Entries::kInt8 && Code::kLevelBits > 6) {
      return kFloats<WideBytes<SignedTable<Code>>>;
    } else {
      return kFloats<FloatTable<Code, kEntries>>;
    }
  }
};

const FloatFunctions& FloatsOf(const Layer& layer, const RowRun& run) {
  return layer.weights.codebook_type == CodebookType::kFloat16
             ? kByClass<FloatChoice<Entries::kHalf>>.of[run.row_class]
             : kByClass<FloatChoice<Entries::kInt8>>.of[run.row_class];
}

void PrepareFloats(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  auto* out = static_cast<float*>(prepared);
  for (int64_t m = 0; m < M; ++m, out += ExactFloats(K)) {
    ScaleToken(layer, x, type, m, out);
    float32x4_t sum = vdupq_n_f32(0);
    for (int64_t k = 0; k < columns; k += 4) sum = vaddq_f32(sum, vld1q_f32(out + k));
    out[columns] = vaddvq_f32(sum);
  }
}

// Up to kTileRows rows: products [M, kTileRows].
void TileFloats(const Layer& layer, const float* x, int64_t M, int64_t begin, int64_t rows, float* products) {
  const int64_t K = layer.weights.K, stride = ExactFloats(K);
  auto* tile = ThreadScratch<float>(Scratch::kTile, kTileRows * kFloatBlocks * kSuperblockColumns);
  std::memset(products, 0, M * kTileRows * sizeof *products);
  EachPiece(K, kFloatBlocks, [&](int64_t block, int64_t end, int64_t first, int64_t columns) {
    EachTileRow(layer, begin, rows, kMicroRows, [&](int64_t r, const RowRun& run, int64_t row) {
      FloatsOf(layer, run).decode(run, row, K, block, end, tile + r * columns);
    });
    for (int64_t m = 0; m < M; m += kFloatTokens) {
      const FloatMicro micro = kFloatMicros[Min(M - m, kFloatTokens) - 1];
      for (int64_t r = 0; r < rows; r += kMicroRows) {
        micro(x + m * stride + first, stride, tile + r * columns, columns, products + m * kTileRows + r);
      }
    }
  });
}

void MatmulFloats(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                  FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K;
  const auto* x = static_cast<const float*>(prepared);
  auto* products = ThreadScratch<float>(Scratch::kSums, M * kTileRows);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t rows = Min(end - first, kTileRows);
    if (M == 1) {
      EachRun(layer, first, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t at) {
        FloatsOf(layer, run).dot(run, row, count, K, x, products + at);
      });
    } else {
      TileFloats(layer, x, M, first, rows, products);
    }
    EachEnd(layer, first, rows, [&](int64_t r, const RowRun&, const RowEnd& end_of_row) {
      for (int64_t m = 0; m < M; ++m) {
        const float sum = x[m * ExactFloats(K) + PaddedColumns(K)];
        StoreFloat(y, type, m * N + end_of_row.n, Finish(end_of_row, products[m * kTileRows + r], sum));
      }
    });
  }
}

void Gather(const Layer& layer, int64_t stored, void* y, FloatType type) {
  const int64_t K = layer.weights.K;
  const RowRun* run = RunOf(layer.runs, stored);
  const int64_t row = stored - run->first;
  auto* levels = ThreadScratch<float>(Scratch::kTile, PaddedColumns(K));
  FloatsOf(layer, *run).decode(*run, row, K, 0, Superblocks(K), levels);
  StoreWeights(layer, *run, row, levels, y, type);
}

}  // namespace

const Kernels& NeonKernels() {
  static const Kernels kernels{
      "neon", {ExactBytes, PrepareFloats, MatmulFloats}, kIntegerArithmetic<LongProducts>, Swiglu, Gather};
  return kernels;
}

}  // namespace skim
