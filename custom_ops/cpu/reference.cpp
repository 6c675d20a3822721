// The reference kernel: the definition of docs/format.md in plain C++, for every width, kind and codebook.
#include "half.h"
#include "integer.h"
#include "skim/kernels.h"
#include "swiglu.h"

namespace skim {
namespace {

float ColumnScale(const Layer& layer, int64_t k) {
  return layer.weights.column_scale.size ? HalfToFloat(layer.weights.column_scale.data[k]) : 1.0f;
}

// What the level of column k is looked up by, in the codes of one row: its code, or its window.
int CodeAt(const uint8_t* row, int row_class, int64_t K, int64_t k) {
  const int bits = ClassBits(row_class), memory = ClassMemory(row_class);
  const int64_t block = k / kSuperblockColumns;
  const int lanes = (block + 1) * kSuperblockColumns <= K ? kLanes : TailLanes(K);
  const int column = static_cast<int>(k % kSuperblockColumns), j = column / lanes;
  const uint8_t* lane = row + block * bits * kLanes + column % lanes;
  int code = 0;
  for (int i = 0; i < LevelFieldCount(bits, memory, j); ++i) {
    const Field f = LevelField(bits, memory, j, i);
    code |= ((lane[f.vector * lanes] >> f.bit) & ((1 << f.length) - 1)) << f.code_bit;
  }
  return code;
}

// Where a code's level, or a window's, stands in the codebook, but for its sign.
struct Entry {
  int64_t index;
  int sign;
};

Entry EntryOf(const RowRun& run, int64_t row, int code) {
  const int64_t entries = CodebookEntries(run.row_class);
  if (code < entries) return {row * entries + code, 1};
  return {row * entries + 2 * entries - 1 - code, -1};
}

// Level of `code` in the `row`-th row of a run.
float Level(const RowRun& run, CodebookType type, int64_t row, int code) {
  const int bits = ClassBits(run.row_class);
  if (IsAffine(run.row_class)) {
    const float scale = HalfToFloat(run.row_scale[2 * row]);
    const float offset = HalfToFloat(run.row_scale[2 * row + 1]);
    return offset + scale * static_cast<float>(code - (1 << (bits - 1)));
  }
  const Entry entry = EntryOf(run, row, code);
  if (type == CodebookType::kFloat16) {
    return entry.sign * HalfToFloat(static_cast<const uint16_t*>(run.codebook)[entry.index]);
  }
  return HalfToFloat(run.row_scale[row]) *
         static_cast<float>(entry.sign * static_cast<const int8_t*>(run.codebook)[entry.index]);
}

// Levels [K] of a stored row, without the column scale.
void DecodeRow(const Layer& layer, int64_t stored, float* levels) {
  const RowRun* run = RunOf(layer.runs, stored);
  const int64_t row = stored - run->first;
  float table[256];
  for (int code = 0; code < 1 << LevelBits(run->row_class); ++code)
    table[code] = Level(*run, layer.weights.codebook_type, row, code);
  const int64_t K = layer.weights.K;
  const uint8_t* codes = run->codes + row * RowBytes(ClassBits(run->row_class), K);
  for (int64_t k = 0; k < K; ++k) levels[k] = table[CodeAt(codes, run->row_class, K, k)];
}

// A token as float32, multiplied by the column scale.
void ScaleToken(const Layer& layer, const void* x, FloatType type, int64_t m, float* token) {
  const int64_t K = layer.weights.K;
  for (int64_t k = 0; k < K; ++k) token[k] = LoadFloat(x, type, m * K + k) * ColumnScale(layer, k);
}

int64_t RoundUp(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// ---- exact: a prepared token is its floats

int64_t FloatBytesPrepared(int64_t K) { return RoundUp(K * static_cast<int64_t>(sizeof(float))); }

void PrepareFloats(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  for (int64_t m = 0; m < M; ++m) {
    char* token = static_cast<char*>(prepared) + m * FloatBytesPrepared(layer.weights.K);
    ScaleToken(layer, x, type, m, reinterpret_cast<float*>(token));
  }
}

void MatmulFloats(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                  FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K;
  float* levels = ThreadScratch<float>(Scratch::kTile, K);
  for (int64_t stored = begin; stored < end; ++stored) {
    DecodeRow(layer, stored, levels);
    const int64_t n = layer.destination ? layer.destination[stored] : stored;
    const float bias = layer.weights.bias.size ? layer.weights.bias.data[n] : 0.0f;
    for (int64_t m = 0; m < M; ++m) {
      const auto* token =
          reinterpret_cast<const float*>(static_cast<const char*>(prepared) + m * FloatBytesPrepared(K));
      float sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += levels[k] * token[k];
      StoreFloat(y, type, m * N + n, sum + bias);
    }
  }
}

// ---- integer: a prepared token is its meaning, then its digits [K] and [K]

int64_t IntegerBytesPrepared(int64_t K) { return RoundUp(static_cast<int64_t>(sizeof(IntegerToken)) + 2 * K); }

void PrepareIntegers(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared) {
  const int64_t K = layer.weights.K;
  float* floats = ThreadScratch<float>(Scratch::kToken, K);
  for (int64_t m = 0; m < M; ++m) {
    char* out = static_cast<char*>(prepared) + m * IntegerBytesPrepared(K);
    auto* digits = reinterpret_cast<int8_t*>(out + sizeof(IntegerToken));
    ScaleToken(layer, x, type, m, floats);
    const IntegerToken token = QuantizeToken(floats, K, digits, digits + K);
    std::memcpy(out, &token, sizeof token);
  }
}

void MatmulIntegers(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                    FloatType type) {
  const int64_t N = layer.weights.N, K = layer.weights.K;
  for (int64_t stored = begin; stored < end; ++stored) {
    const RowRun* run = RunOf(layer.runs, stored);
    const int64_t row = stored - run->first;
    const int bits = ClassBits(run->row_class);
    const uint8_t* codes = run->codes + row * RowBytes(bits, K);
    const RowEnd end_of_row = MakeRowEnd(layer, *run, row);
    for (int64_t m = 0; m < M; ++m) {
      const char* in = static_cast<const char*>(prepared) + m * IntegerBytesPrepared(K);
      const auto* digits = reinterpret_cast<const int8_t*>(in + sizeof(IntegerToken));
      const IntegerToken token = MeaningOf(in);
      int32_t high = 0, low = 0;
      for (int64_t k = 0; k < K; ++k) {
        const int code = CodeAt(codes, run->row_class, K, k);
        int level = code - (1 << (bits - 1));
        if (!IsAffine(run->row_class)) {
          const Entry entry = EntryOf(*run, row, code);
          level = entry.sign * static_cast<const int8_t*>(run->codebook)[entry.index];
        }
        high += level * digits[k];
        low += level * digits[K + k];
      }
      StoreFloat(y, type, m * N + end_of_row.n, FinishInteger(end_of_row, SumOfDigits(high, low), token));
    }
  }
}

void Gather(const Layer& layer, int64_t stored, void* y, FloatType type) {
  const int64_t K = layer.weights.K;
  float* levels = ThreadScratch<float>(Scratch::kTile, K);
  DecodeRow(layer, stored, levels);
  for (int64_t k = 0; k < K; ++k) StoreFloat(y, type, k, levels[k] * ColumnScale(layer, k));
}

}  // namespace

const Kernels& ReferenceKernels() {
  static const Kernels kernels{"reference",
                               {FloatBytesPrepared, PrepareFloats, MatmulFloats},
                               {IntegerBytesPrepared, PrepareIntegers, MatmulIntegers},
                               Swiglu,
                               Gather};
  return kernels;
}

}  // namespace skim
