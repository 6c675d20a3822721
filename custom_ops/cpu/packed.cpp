#include "skim/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace skim {
namespace {

std::string WrongSize(const char* name, const std::string& expected, int64_t got) {
  return std::string(name) + " must have " + expected + " elements, got " + std::to_string(got);
}

bool AllFinite(const Tensor<uint16_t>& halves) {
  for (int64_t i = 0; i < halves.size; ++i) {
    if (!HalfIsFinite(halves.data[i])) return false;
  }
  return true;
}

// The bits of a row's last superblock that belong to columns K and above, `bits * lanes` bytes.
std::vector<uint8_t> PaddingMask(int row_class, int64_t K) {
  const int bits = ClassBits(row_class);
  const int lanes = TailLanes(K);
  std::vector<uint8_t> mask(bits * lanes);
  for (int column = static_cast<int>(K % kSuperblockColumns); column < 8 * lanes; ++column) {
    const int j = column / lanes;
    for (int i = 0; i < (HasWindows(row_class) ? StreamFieldCount(bits, 0, j) : FieldCount(bits, j)); ++i) {
      const Field f = HasWindows(row_class) ? StreamField(bits, 0, j, i) : CodeField(bits, j, i);
      mask[f.vector * lanes + column % lanes] |= ((1 << f.length) - 1) << f.bit;
    }
  }
  return mask;
}

bool PaddingIsZero(const uint8_t* codes, int row_class, int64_t rows, int64_t K) {
  const std::vector<uint8_t> mask = PaddingMask(row_class, K);
  const int64_t row_bytes = RowBytes(ClassBits(row_class), K);
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* tail = codes + (row + 1) * row_bytes - mask.size();
    for (size_t i = 0; i < mask.size(); ++i) {
      if (tail[i] & mask[i]) return false;
    }
  }
  return true;
}

// Where the rows of a class that are not taken yet begin.
struct ClassCursor {
  const uint8_t* codes;
  const uint8_t* codebook;
  const uint16_t* row_scale;
};

// Behind `count` rows of a class.
void Advance(ClassCursor& cursor, const PackedLinear& weights, int row_class, int64_t count) {
  const bool int8 = weights.codebook_type == CodebookType::kInt8;
  cursor.codes += count * RowBytes(ClassBits(row_class), weights.K);
  cursor.codebook += count * CodebookEntries(row_class) * (int8 ? 1 : 2);
  cursor.row_scale += count * (IsAffine(row_class) ? 2 : int8);
}

void BeginClasses(const PackedLinear& weights, ClassCursor* cursors) {
  ClassCursor next{weights.codes.data, static_cast<const uint8_t*>(weights.codebook.data), weights.row_scale.data};
  for (int c = 0; c < kClasses; ++c) {
    cursors[c] = next;
    Advance(next, weights, c, weights.rows_per_class[c]);
  }
}

// Gives a layer its runs: the next rows of each class, as many as its weights say. `first`: where those of each class
// begin among its stored rows.
void AddRuns(Layer& layer, ClassCursor* cursors, int64_t* first) {
  const bool int8 = layer.weights.codebook_type == CodebookType::kInt8;
  int64_t row = 0;
  for (int c = 0; c < kClasses; ++c) {
    first[c] = row;
    const int64_t count = layer.weights.rows_per_class[c];
    if (count == 0) continue;
    const bool affine = IsAffine(c);
    layer.runs[layer.run_count++] = {c,
                                     row,
                                     count,
                                     cursors[c].codes,
                                     affine ? nullptr : cursors[c].codebook,
                                     affine || int8 ? cursors[c].row_scale : nullptr};
    row += count;
    Advance(cursors[c], layer.weights, c, count);
  }
}

}  // namespace

std::string PackedLinear::Validate() const {
  if (N < 1 || K < 1 || N > kMaxRows || K > kMaxRows) {
    return "N and K must be 1.." + std::to_string(kMaxRows) + ", got N=" + std::to_string(N) +
           ", K=" + std::to_string(K);
  }
  const bool int8 = codebook_type == CodebookType::kInt8;
  int64_t rows = 0, classes = 0, code_bytes = 0, entries = 0, scales = 0;
  for (const int64_t count : rows_per_class) {
    if (count < 0 || count > N) {
      return "rows_per_class must be counts of 0..N=" + std::to_string(N) + ", got " + std::to_string(count);
    }
    rows += count;
    classes += count > 0;
  }
  if (rows != N) {
    return "rows_per_class must sum to N=" + std::to_string(N) + ", got a sum of " + std::to_string(rows);
  }
  for (int c = 0; c < kClasses; ++c) {  // N rows together: nothing of this overflows
    const int64_t count = rows_per_class[c];
    code_bytes += count * RowBytes(ClassBits(c), K);
    entries += count * CodebookEntries(c);
    scales += count * (IsAffine(c) ? 2 : int8);
  }
  if (codes.size != code_bytes) return WrongSize("codes", std::to_string(code_bytes), codes.size);
  if (codebook.size != entries) return WrongSize("codebook", std::to_string(entries), codebook.size);
  if (row_scale.size != scales) return WrongSize("row_scale", std::to_string(scales), row_scale.size);
  if (row_class.size != N && (row_class.size != 0 || classes > 1)) {
    return WrongSize("row_class", "N=" + std::to_string(N) + (classes > 1 ? "" : " or 0"), row_class.size);
  }
  if (column_scale.size != 0 && column_scale.size != K) {
    return WrongSize("column_scale", "K=" + std::to_string(K) + " or 0", column_scale.size);
  }
  if (bias.size != 0 && bias.size != N) return WrongSize("bias", "N=" + std::to_string(N) + " or 0", bias.size);

  int64_t counts[kClasses] = {};
  for (int64_t n = 0; n < row_class.size; ++n) {
    if (row_class.data[n] >= kClasses) {
      return "row_class must be 0.." + std::to_string(kClasses - 1) + ", got " + std::to_string(row_class.data[n]) +
             " for row " + std::to_string(n);
    }
    ++counts[row_class.data[n]];
  }
  if (row_class.size != 0 && std::memcmp(counts, rows_per_class, sizeof counts) != 0) {
    return "row_class does not agree with rows_per_class";
  }
  if (!int8 && !AllFinite({static_cast<const uint16_t*>(codebook.data), codebook.size})) {
    return "codebook has a value that is not finite";
  }
  if (int8) {
    const auto* end = static_cast<const int8_t*>(codebook.data) + entries;  // rows with windows come last
    int64_t of_windows = 0;
    for (int c = kPlainClasses; c < kClasses; ++c) of_windows += rows_per_class[c] * CodebookEntries(c);
    if (std::find(end - of_windows, end, -128) != end) {
      return "codebook: an entry of a row with windows is -128, which has no negative";
    }
  }
  if (!AllFinite(row_scale)) return "row_scale has a value that is not finite";
  if (!AllFinite(column_scale)) return "column_scale has a value that is not finite";
  for (int64_t k = 0; k < column_scale.size; ++k) {
    if (!(HalfToFloat(column_scale.data[k]) > 0)) return "column_scale has a value that is not positive";
  }
  for (int64_t n = 0; n < bias.size; ++n) {
    if (!std::isfinite(bias.data[n])) return "bias has a value that is not finite";
  }
  const uint8_t* class_codes = codes.data;
  for (int c = 0; c < kClasses; ++c) {
    const int bits = ClassBits(c);
    if (K % 32 != 0 && !PaddingIsZero(class_codes, c, rows_per_class[c], K)) {
      return "codes: a padding code of the " + std::to_string(bits) + "-bit rows is not 0";
    }
    class_codes += rows_per_class[c] * RowBytes(bits, K);
  }
  return "";
}

IndexedLayer::IndexedLayer(const PackedLinear& weights) : layer_{weights, {}, 0, nullptr} {
  ClassCursor cursors[kClasses];
  BeginClasses(weights, cursors);
  int64_t first[kClasses];
  AddRuns(layer_, cursors, first);
  if (layer_.run_count > 1) {
    destination_.resize(weights.N);
    stored_.resize(weights.N);
    for (int64_t n = 0; n < weights.N; ++n) {
      const int64_t stored = first[weights.row_class.data[n]]++;
      destination_[stored] = static_cast<int32_t>(n);
      stored_[n] = static_cast<int32_t>(stored);
    }
    layer_.destination = destination_.data();
  }
}

ExpertLayers::ExpertLayers(const PackedLinear& weights, int64_t experts)
    : layers_(experts), destination_(weights.row_class.size) {
  const int64_t N = weights.N / experts;
  ClassCursor cursors[kClasses];
  BeginClasses(weights, cursors);
  for (int64_t e = 0; e < experts; ++e) {
    Layer& layer = layers_[e];
    layer.weights = weights;
    PackedLinear& own = layer.weights;
    own.N = N;
    if (weights.bias.size) own.bias = {weights.bias.data + e * N, N};
    if (weights.row_class.size) {
      own.row_class = {weights.row_class.data + e * N, N};
      std::fill(own.rows_per_class, own.rows_per_class + kClasses, 0);
      for (int64_t n = 0; n < N; ++n) ++own.rows_per_class[own.row_class.data[n]];
    } else {
      for (int64_t& count : own.rows_per_class) count /= experts;  // all are of one class
    }
    own.codes = {nullptr, 0};
    for (int c = 0; c < kClasses; ++c) own.codes.size += own.rows_per_class[c] * RowBytes(ClassBits(c), own.K);
    int64_t first[kClasses];
    AddRuns(layer, cursors, first);
    if (layer.run_count > 1) {
      int32_t* destination = destination_.data() + e * N;
      for (int64_t n = 0; n < N; ++n) destination[first[own.row_class.data[n]]++] = static_cast<int32_t>(n);
      layer.destination = destination;
    }
  }
}

}  // namespace skim
