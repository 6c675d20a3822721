// The integer kernels of the NEON instruction sets. Each of them brings its `Products`, a way to multiply levels with
// the two digits of the activations:
//
//     Pair(a, b)     16 columns of two rows, or of the two digits of a token, as they are multiplied
//     StoreRow       16 columns of one row to its place in a stored pair
//     Sums<kRows>    the sums of the products of one or two rows with a token; of one row, the pair is twice the same
//     kTokens        tokens whose sums with four rows fit into the registers
//
// A prepared token has a pair of digits for each 16 columns.
#pragma once

#include "integer.h"
#include "neon.h"

namespace skim {
namespace {

struct IntegerView {
  IntegerToken token;
  const int8_t* digits;

  IntegerView(const void* prepared, int64_t m, int64_t K) {
    const int8_t* start = static_cast<const int8_t*>(prepared) + m * IntegerBytes(K);
    token = MeaningOf(start);
    digits = start + kAlignment;
  }
};

SKIM_INLINE int8x16x2_t LoadPair(const int8_t* p) { return {{vld1q_s8(p), vld1q_s8(p + 16)}}; }

SKIM_INLINE void StorePair(int8_t* p, int8x16x2_t pair) {
  vst1q_s8(p, pair.val[0]);
  vst1q_s8(p + 16, pair.val[1]);
}

// Products of instructions that multiply a row with a digit: Multiply(sums, row, digit).
template <int32x4_t (*Multiply)(int32x4_t, int8x16_t, int8x16_t), int kTokensAtOnce>
struct RowProducts {
  static constexpr int kTokens = kTokensAtOnce;

  static SKIM_INLINE int8x16x2_t Pair(int8x16_t a, int8x16_t b) { return {{a, b}}; }
  static SKIM_INLINE void StoreRow(int8_t* pair, int64_t row, int8x16_t levels) { vst1q_s8(pair + 16 * row, levels); }

  template <int kRows>
  struct Sums {
    int32x4_t high[kRows] = {}, low[kRows] = {};

    SKIM_INLINE void Add(int8x16x2_t rows, int8x16x2_t digits) {
      Unroll<kRows>([&](auto r) __attribute__((always_inline)) {
        high[r] = Multiply(high[r], rows.val[r], digits.val[0]);
        low[r] = Multiply(low[r], rows.val[r], digits.val[1]);
      });
    }
    // high and low of the first row, high and low of the second
    SKIM_INLINE int32x4_t Total() const {
      return vpaddq_s32(vpaddq_s32(high[0], low[0]), vpaddq_s32(high[kRows - 1], low[kRows - 1]));
    }
  };
};

// ---- one token

// kRows rows from `row` on: their sums over the digits, high and low for each.
template <typename Products, typename Levels, int kRows>
SKIM_INLINE void DotIntegers(const RowRun& run, int64_t row, int64_t K, const int8_t* digits, int32_t* sums) {
  const int64_t row_bytes = RowBytes(Levels::Code::kBits, K);
  const Levels first(run, row), second(run, row + kRows - 1);
  typename Products::template Sums<kRows> products;
  EachCodes<typename Levels::Code, Levels::kClean, kRows>(
      run.codes + row * row_bytes, row_bytes, K, 0, Superblocks(K),
      [&](const uint8x16_t(&codes)[kRows], int64_t column) __attribute__((always_inline)) {
        const int8x16_t a = first(codes[0]), b = kRows == 1 ? a : second(codes[kRows - 1]);
        products.Add(Products::Pair(a, b), LoadPair(digits + 2 * column));
      });
  const int32x4_t total = products.Total();
  if constexpr (kRows == 2) {
    vst1q_s32(sums, total);
  } else {
    vst1_s32(sums, vget_low_s32(total));
  }
}

template <typename Products, typename Levels>
void DotIntegerRows(const RowRun& run, int64_t row, int64_t count, int64_t K, const int8_t* digits, int32_t* sums) {
  constexpr int kRows = Levels::kRows;
  int64_t r = 0;
  for (; r + kRows <= count; r += kRows) DotIntegers<Products, Levels, kRows>(run, row + r, K, digits, sums + 2 * r);
  if (r < count) DotIntegers<Products, Levels, 1>(run, row + r, K, digits, sums + 2 * r);
}

// ---- several tokens: a tile of rows is decoded, then multiplied with all of them

constexpr int64_t kIntegerBlocks = 4;  // superblocks decoded at a time: 16 KiB for 16 rows

// The levels of the superblocks begin..end of a row, one of the pair at `pair`.
template <typename Products, typename Levels>
void DecodeIntegers(const RowRun& run, int64_t row, int64_t K, int64_t begin, int64_t end, int8_t* pair,
                    int64_t row_of_pair) {
  const Levels levels(run, row);
  EachCodes<typename Levels::Code, Levels::kClean, 1>(
      run.codes + row * RowBytes(Levels::Code::kBits, K), 0, K, begin, end,
      [&](const uint8x16_t(&codes)[1], int64_t column)
          __attribute__((always_inline)) { Products::StoreRow(pair + 2 * column, row_of_pair, levels(codes[0])); });
}

// Sums of the products of kTokens tokens, `stride` bytes apart, with four rows of a tile over `columns` columns, added
// to sums[token * 2 * kTileRows].
template <typename Products, int kTokens>
void MicroIntegers(const int8_t* digits, int64_t stride, const int8_t* tile, int64_t columns, int32_t* sums) {
  constexpr int kPairs = kMicroRows / 2;
  typename Products::template Sums<2> products[kTokens][kPairs];
  for (int64_t k = 0; k < columns; k += kGroup) {
    int8x16x2_t rows[kPairs];
    Unroll<kPairs>([&](auto p) __attribute__((always_inline)) { rows[p] = LoadPair(tile + 2 * (p * columns + k)); });
    Unroll<kTokens>([&](auto t) __attribute__((always_inline)) {
      const int8x16x2_t token = LoadPair(digits + t * stride + 2 * k);
      Unroll<kPairs>([&](auto p) __attribute__((always_inline)) { products[t][p].Add(rows[p], token); });
    });
  }
  Unroll<kTokens>([&](auto t) __attribute__((always_inline)) {
    Unroll<kPairs>([&](auto p) __attribute__((always_inline)) {
      int32_t* out = sums + t * 2 * kTileRows + 4 * p;
      vst1q_s32(out, vaddq_s32(vld1q_s32(out), products[t][p].Total()));
    });
  });
}

// For 1 to kTokens tokens.
using IntegerMicro = void (*)(const int8_t*, int64_t, const int8_t*, int64_t, int32_t*);
template <typename Products>
constexpr IntegerMicro kIntegerMicros[] = {MicroIntegers<Products, 1>, MicroIntegers<Products, 2>,
                                           MicroIntegers<Products, Min(3, Products::kTokens)>,
                                           MicroIntegers<Products, Min(4, Products::kTokens)>};

// ---- the table of entry points

struct IntegerFunctions {
  int zero;  // what the levels are too large by
  void (*dot)(const RowRun&, int64_t row, int64_t count, int64_t K, const int8_t* digits, int32_t* sums);
  void (*decode)(const RowRun&, int64_t row, int64_t K, int64_t begin, int64_t end, int8_t* pair, int64_t row_of_pair);
};

template <typename Products, typename Levels>
constexpr IntegerFunctions kIntegers{Levels::kZero, DotIntegerRows<Products, Levels>, DecodeIntegers<Products, Levels>};
template <typename Products>
struct IntegerChoice {
  template <int kClass>
  static constexpr IntegerFunctions Of() {
    using Code = CodeOfClass<kClass>;
    if constexpr (IsAffine(kClass)) {
      return kIntegers<Products, SignedAffine<Code::kBits>>;
    } else {
      return kIntegers<Products, SignedTable<Code>>;
    }
  }
};
template <typename Products>
constexpr auto& kIntegersOf = kByClass<IntegerChoice<Products>>.of;

template <typename Products>
void PrepareIntegers(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  const int64_t K = layer.weights.K, columns = PaddedColumns(K);
  auto* floats = ThreadScratch<float>(Scratch::kToken, columns);
  auto* high = ThreadScratch<int8_t>(Scratch::kTile, 2 * columns);
  int8_t* low = high + columns;
  for (int64_t m = 0; m < M; ++m) {
    auto* out = static_cast<int8_t*>(prepared) + m * IntegerBytes(K);
    ScaleToken(layer, x, type, m, floats);
    const IntegerToken token = QuantizeToken(floats, columns, high, low);
    std::memcpy(out, &token, sizeof token);
    for (int64_t k = 0; k < columns; k += kGroup) {
      StorePair(out + kAlignment + 2 * k, Products::Pair(vld1q_s8(high + k), vld1q_s8(low + k)));
    }
  }
}

// Up to kTileRows rows: sums [M, kTileRows, 2].
template <typename Products>
void TileIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t rows, int32_t* sums) {
  const int64_t K = layer.weights.K, stride = IntegerBytes(K);
  auto* tile = ThreadScratch<int8_t>(Scratch::kTile, kTileRows * kIntegerBlocks * kSuperblockColumns);
  const int8_t* digits = IntegerView(prepared, 0, K).digits;
  std::memset(sums, 0, M * 2 * kTileRows * sizeof *sums);
  EachPiece(K, kIntegerBlocks, [&](int64_t block, int64_t end, int64_t first, int64_t columns) {
    EachTileRow(layer, begin, rows, kMicroRows, [&](int64_t r, const RowRun& run, int64_t row) {
      kIntegersOf<Products>[run.row_class].decode(run, row, K, block, end, tile + r / 2 * 2 * columns, r % 2);
    });
    for (int64_t m = 0; m < M; m += Products::kTokens) {
      const IntegerMicro micro = kIntegerMicros<Products>[Min(M - m, Products::kTokens) - 1];
      for (int64_t r = 0; r < rows; r += kMicroRows) {
        micro(digits + m * stride + 2 * first, stride, tile + r * columns, columns, sums + 2 * (m * kTileRows + r));
      }
    }
  });
}

template <typename Products>
void MatmulIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                    FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K;
  auto* sums = ThreadScratch<int32_t>(Scratch::kSums, M * 2 * kTileRows);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t rows = Min(end - first, kTileRows);
    if (M == 1) {
      const int8_t* digits = IntegerView(prepared, 0, K).digits;
      EachRun(layer, first, rows, [&](const RowRun& run, int64_t row, int64_t count, int64_t at) {
        kIntegersOf<Products>[run.row_class].dot(run, row, count, K, digits, sums + 2 * at);
      });
    } else {
      TileIntegers<Products>(layer, prepared, M, first, rows, sums);
    }
    EachEnd(layer, first, rows, [&](int64_t r, const RowRun& run, const RowEnd& end_of_row) {
      const int zero = kIntegersOf<Products>[run.row_class].zero;
      for (int64_t m = 0; m < M; ++m) {
        const IntegerToken token = IntegerView(prepared, m, K).token;
        const int32_t* of_row = sums + 2 * (m * kTileRows + r);
        const double D = SumOfDigits(of_row[0] - zero * token.high_sum, of_row[1] - zero * token.low_sum);
        StoreFloat(y, type, m * N + end_of_row.n, FinishInteger(end_of_row, D, token));
      }
    });
  }
}

template <typename Products>
constexpr Arithmetic kIntegerArithmetic{IntegerBytes, PrepareIntegers<Products>, MatmulIntegers<Products>};

}  // namespace
}  // namespace skim
