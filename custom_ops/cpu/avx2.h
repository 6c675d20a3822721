// What the AVX2 kernels share: codes, 32 at a time, the activations that belong to them, and tiles of rows.
//
// Codes and activations come in groups of 32 columns:
//
//     a full superblock: one group for each code of a lane
//     a last superblock of 8 or 16 lanes: it is dense, and the groups are 32 consecutive columns
//     a last superblock of another size: like a full one; lanes that do not exist have activations of 0
//
// The files that include this one are compiled for AVX2 as a whole. So nothing in it, or in them, may have external
// linkage but the functions that they are there for: if the linker merged an inline function with its copy in another
// file, an older CPU could meet an AVX2 instruction there.
#pragma once

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "row.h"
#include "skim/kernels.h"

namespace skim {

Arithmetic Avx2Integer();  // avx2_integer.cpp

namespace {

constexpr int kGroup = 32;  // columns whose levels are looked up at once

// ---- codes

// Field i of code j of all 32 lanes, in its place within the code.
template <typename Code, int kJ, int kI>
SKIM_INLINE __m256i FieldOf(const __m256i* vectors) {
  constexpr Field f = Code::FieldAt(kJ, kI);
  constexpr int right = f.bit - f.code_bit;
  __m256i bits = vectors[f.vector];
  if constexpr (right > 0) bits = _mm256_srli_epi16(bits, right);
  if constexpr (right < 0) bits = _mm256_slli_epi16(bits, -right);
  if constexpr (f.length == 8) return bits;
  return _mm256_and_si256(bits, _mm256_set1_epi8(static_cast<char>(((1 << f.length) - 1) << f.code_bit)));
}

// Code j of all 32 lanes.
template <typename Code, int kJ>
SKIM_INLINE __m256i CodesOf(const __m256i* vectors) {
  __m256i codes = FieldOf<Code, kJ, 0>(vectors);
  if constexpr (Code::Fields(kJ) > 1) codes = _mm256_or_si256(codes, FieldOf<Code, kJ, 1>(vectors));
  if constexpr (Code::Fields(kJ) > 2) codes = _mm256_or_si256(codes, FieldOf<Code, kJ, 2>(vectors));
  return codes;
}

SKIM_INLINE long long Load64(const uint8_t* p) {
  long long value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Field i of the code that 64-bit lane `lane` of group `group` holds in a dense superblock of 8 or 16 lanes; a field of
// length 0 if that code has fewer.
template <typename Code>
constexpr Field DenseField(int lanes, int group, int lane, int i) {
  const int j = group * (kGroup / lanes) + lane / (lanes / 8);
  return i < Code::Fields(j) ? Code::FieldAt(j, i) : Field{0, 0, 0, 0};
}

// The most fields of a code of a group.
template <typename Code>
constexpr int DenseFields(int lanes, int group) {
  int most = 0;
  for (int j = group * (kGroup / lanes); j < (group + 1) * (kGroup / lanes); ++j) {
    most = Code::Fields(j) > most ? Code::Fields(j) : most;
  }
  return most;
}

// The lowest `length` bits of each byte.
constexpr long long ByteMask(int length) { return static_cast<long long>(0x0101010101010101u * ((1u << length) - 1)); }

template <typename Code, int kDenseLanes, int kGroupIndex, int kI>
SKIM_INLINE __m256i DenseFieldOf(const uint8_t* p) {
  constexpr Field f0 = DenseField<Code>(kDenseLanes, kGroupIndex, 0, kI);
  constexpr Field f1 = DenseField<Code>(kDenseLanes, kGroupIndex, 1, kI);
  constexpr Field f2 = DenseField<Code>(kDenseLanes, kGroupIndex, 2, kI);
  constexpr Field f3 = DenseField<Code>(kDenseLanes, kGroupIndex, 3, kI);
  constexpr int second = kDenseLanes == 16 ? 8 : 0;  // odd 64-bit lanes hold the second half of 16 lanes
  __m256i bits = _mm256_set_epi64x(Load64(p + f3.vector * kDenseLanes + second), Load64(p + f2.vector * kDenseLanes),
                                   Load64(p + f1.vector * kDenseLanes + second), Load64(p + f0.vector * kDenseLanes));
  bits = _mm256_srlv_epi64(bits, _mm256_set_epi64x(f3.bit, f2.bit, f1.bit, f0.bit));
  bits = _mm256_and_si256(
      bits, _mm256_set_epi64x(ByteMask(f3.length), ByteMask(f2.length), ByteMask(f1.length), ByteMask(f0.length)));
  return _mm256_sllv_epi64(bits, _mm256_set_epi64x(f3.code_bit, f2.code_bit, f1.code_bit, f0.code_bit));
}

// Codes of 32 consecutive columns of a dense superblock.
template <typename Code, int kDenseLanes, int kGroupIndex>
SKIM_INLINE __m256i DenseCodesOf(const uint8_t* p) {
  constexpr int fields = DenseFields<Code>(kDenseLanes, kGroupIndex);
  __m256i codes = DenseFieldOf<Code, kDenseLanes, kGroupIndex, 0>(p);
  if constexpr (fields > 1) codes = _mm256_or_si256(codes, DenseFieldOf<Code, kDenseLanes, kGroupIndex, 1>(p));
  if constexpr (fields > 2) codes = _mm256_or_si256(codes, DenseFieldOf<Code, kDenseLanes, kGroupIndex, 2>(p));
  return codes;
}

// All codes of a dense superblock, 32 consecutive columns each. Not inlined: it is short beside a row, and there would
// be a copy for every kind of levels.
template <typename Code>
__attribute__((noinline)) void DenseCodes(const uint8_t* p, int lanes, __m256i* codes) {
  if (lanes == 8) {
    codes[0] = DenseCodesOf<Code, 8, 0>(p);
    codes[1] = DenseCodesOf<Code, 8, 1>(p);
  } else {
    codes[0] = DenseCodesOf<Code, 16, 0>(p);
    codes[1] = DenseCodesOf<Code, 16, 1>(p);
    codes[2] = DenseCodesOf<Code, 16, 2>(p);
    codes[3] = DenseCodesOf<Code, 16, 3>(p);
  }
}

// Hands the codes, or windows, of the superblocks begin..end of kRows rows, `stride` bytes apart, to `sink`, 32 of each
// row at a time, as an array of registers.
template <typename Code, int kRows, typename Sink>
SKIM_INLINE void EachCodes(const uint8_t* row, int64_t stride, int64_t K, int64_t begin, int64_t end, Sink&& sink) {
  constexpr int kBits = Code::kBits;
  const int64_t full = Min(K / kSuperblockColumns, end);
  const int lanes = full < end ? TailLanes(K) : 0;
  const uint8_t* p = row + begin * kBits * kLanes;
  int64_t blocks = full - begin;
  uint8_t spread[kRows][kBits * kLanes];
  if (lanes != 0 && !TailIsDense(lanes)) {
    // Spread the last superblock out to 32 lanes; the bytes behind the row are not ours to read.
    const uint8_t* tail = p + blocks * kBits * kLanes;
    std::memset(spread, 0, sizeof spread);
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kBits; ++i) std::memcpy(spread[r] + i * kLanes, tail + r * stride + i * lanes, lanes);
    }
    ++blocks;
  }
  for (; blocks > 0; --blocks, p += kBits * kLanes) {
    if (blocks == 1 && lanes != 0 && !TailIsDense(lanes)) {
      p = spread[0];
      stride = kBits * kLanes;
    }
    __m256i vectors[kRows][kBits];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kBits; ++i) {
        vectors[r][i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + r * stride + i * kLanes));
      }
    }
    const auto codes_of = [&](auto j) __attribute__((always_inline)) {
      __m256i codes[kRows];
      for (int r = 0; r < kRows; ++r) codes[r] = CodesOf<Code, decltype(j)::value>(vectors[r]);
      sink(codes);
    };
    codes_of(std::integral_constant<int, 0>());
    codes_of(std::integral_constant<int, 1>());
    codes_of(std::integral_constant<int, 2>());
    codes_of(std::integral_constant<int, 3>());
    codes_of(std::integral_constant<int, 4>());
    codes_of(std::integral_constant<int, 5>());
    codes_of(std::integral_constant<int, 6>());
    codes_of(std::integral_constant<int, 7>());
  }
  if (TailIsDense(lanes)) {
    __m256i dense[kRows][4];
    for (int r = 0; r < kRows; ++r) DenseCodes<Code>(p + r * stride, lanes, dense[r]);
    for (int i = 0; i < 8 * lanes / kGroup; ++i) {
      __m256i codes[kRows];
      for (int r = 0; r < kRows; ++r) codes[r] = dense[r][i];
      sink(codes);
    }
  }
}

// Looks up bytes for codes of kBits bits, with one shuffle for each 16 entries; tables[i]: entries from 16 i on, in
// both halves. Codes of fewer than 4 bits don't reach beyond their entries.
template <int kBits>
SKIM_INLINE __m256i Lookup(const __m256i* tables, __m256i codes) {
  if constexpr (kBits <= 4) {
    return _mm256_shuffle_epi8(tables[0], codes);
  } else {
    // A shuffle writes 0 for bytes of 128 and more; a blend takes its selector from the top bit of each byte.
    const __m256i low = kBits == 8 ? _mm256_and_si256(codes, _mm256_set1_epi8(0x7f)) : codes;
    const __m256i top = kBits == 8 ? codes : _mm256_slli_epi16(codes, 8 - kBits);
    return _mm256_blendv_epi8(Lookup<kBits - 1>(tables, low), Lookup<kBits - 1>(tables + (1 << (kBits - 5)), low), top);
  }
}

// ---- activations

struct Floats32 {
  __m256 v[4];
};

// Calls body(first column, columns that exist) for each group of 32 columns of a prepared token.
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

SKIM_INLINE void MultiplyColumnScale(const Layer& layer, int64_t first, int columns, Floats32* f) {
  if (layer.weights.column_scale.size == 0) return;
  const Floats32 scale = LoadColumns(layer.weights.column_scale.data, FloatType::kFloat16, first, columns);
  for (int i = 0; i < 4; ++i) f->v[i] = _mm256_mul_ps(f->v[i], scale.v[i]);
}

// A group of a token, multiplied by the column scale.
SKIM_INLINE Floats32 ScaledColumns(const Layer& layer, const void* token, FloatType type, int64_t first, int columns) {
  Floats32 f = LoadColumns(token, type, first, columns);
  MultiplyColumnScale(layer, first, columns, &f);
  return f;
}

// ---- rows

// Few tokens are multiplied while rows are decoded, some of them at a time, so rows may be decoded more than once;
// their codes then are in a cache. For more tokens rows are decoded to a tile: for many it has as many rows as the L2
// cache takes, for some those of one micro kernel, as they don't repay the way to L2.
constexpr int64_t kFewTokensRows = 32;
constexpr int64_t kSomeTokens = 16;
constexpr int64_t kTileRows = 24;

// Sums of the products of several tokens, `x_stride` values apart, with several rows of `columns` columns, added to
// sums[row * sums_stride + token].
template <typename Value, typename Sum>
using MicroFunction = void (*)(const Value* x, int64_t x_stride, const Value* tile, int64_t columns, Sum* sums,
                               int64_t sums_stride);

// A `Path` is what differs between exact and integer arithmetic:
//
//     Value, Sum          of a prepared token and a decoded level; of their products
//     Stride(K), kHeader  values of a prepared token, and those before its columns
//     End, EndOf, Finish  what is known of a row; from its sum to a result
//     kFewTokens          as many are few
//     DotTokens(M), Dot   how many of M few tokens are multiplied at a time, and this, for rows of a run
//     Decode              superblocks of a row to values
//     kBlocks             superblocks that a tile holds
//     kTokens, kRows      the most that a micro kernel takes
//     Micro               the micro kernel for some tokens and rows

// Stored rows begin..end, up to kTileRows, by way of a tile.
template <typename Path>
void MatmulTile(const Layer& layer, const typename Path::Value* prepared, int64_t M, int64_t begin, int64_t end,
                void* y, FloatType type) {
  using Value = typename Path::Value;
  using Sum = typename Path::Sum;
  const int64_t N = layer.weights.N, K = layer.weights.K, rows = end - begin;
  const int64_t stride = Path::Stride(K), sums_stride = CeilDiv(M, Path::kTokens) * Path::kTokens;
  auto* tile = ThreadScratch<Value>(Scratch::kTile, kTileRows * Path::kBlocks * kSuperblockColumns);
  auto* sums = ThreadScratch<Sum>(Scratch::kSums, kTileRows * sums_stride);
  const RowRun* run_of[kTileRows];
  typename Path::End end_of[kTileRows];
  const RowRun* run = layer.runs;
  for (int64_t r = 0; r < rows; ++r) {
    run = RunOf(run, begin + r);
    run_of[r] = run;
    end_of[r] = Path::EndOf(layer, *run, begin + r - run->first);
  }
  std::memset(sums, 0, rows * sums_stride * sizeof(Sum));
  EachPiece(K, Path::kBlocks, [&](int64_t block, int64_t block_end, int64_t first, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
      Path::Decode(layer, *run_of[r], begin + r - run_of[r]->first, block, block_end, tile + r * columns);
    }
    for (int64_t m = 0; m < M; m += Path::kTokens) {
      const Value* x = prepared + m * stride + Path::kHeader + first;
      for (int64_t r = 0; r < rows; r += Path::kRows) {
        const auto micro = Path::Micro(Min(M - m, Path::kTokens), Min(rows - r, Path::kRows));
        micro(x, stride, tile + r * columns, columns, sums + r * sums_stride + m, sums_stride);
      }
    }
  });
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t r = 0; r < rows; ++r) {
      const float value = Path::Finish(end_of[r], sums[r * sums_stride + m], prepared + m * stride, K);
      StoreFloat(y, type, m * N + end_of[r].n, value);
    }
  }
}

// Stored rows begin..end for few tokens.
template <typename Path>
void MatmulFew(const Layer& layer, const typename Path::Value* prepared, int64_t M, int64_t begin, int64_t end, void* y,
               FloatType type) {
  const int64_t N = layer.weights.N, stride = Path::Stride(layer.weights.K);
  for (int64_t m = 0; m < M;) {
    const int64_t tokens = Path::DotTokens(M - m);
    void* out = static_cast<char*>(y) + m * N * FloatBytes(type);
    EachRun(layer, begin, end - begin, [&](const RowRun& run, int64_t row, int64_t count, int64_t) {
      Path::Dot(layer, run, row, row + count, prepared + m * stride, tokens, out, type);
    });
    m += tokens;
  }
}

template <typename Path>
void Matmul(const Layer& layer, const void* in, int64_t M, int64_t begin, int64_t end, void* y, FloatType type) {
  const auto* prepared = static_cast<const typename Path::Value*>(in);
  const bool few = M <= Path::kFewTokens;
  const int64_t tile_rows = M <= kSomeTokens ? Path::kRows : kTileRows;
  const int64_t rows = !few ? tile_rows : Path::DotTokens(M) < M ? kFewTokensRows : end - begin;
  for (int64_t row = begin; row < end; row += rows) {
    (few ? MatmulFew<Path> : MatmulTile<Path>)(layer, prepared, M, row, Min(end, row + rows), y, type);
  }
}

}  // namespace
}  // namespace skim
