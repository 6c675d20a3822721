// The packed linear format (docs/format.md): a view of its tensors, their validation and the order of the rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace skim {

constexpr int64_t kFormatVersion = 2;  // the newest
constexpr int kPlainClasses = 16;      // of version 1, whose levels are those of the codes
constexpr int kClasses = 22;           // of version 2, with those of windows
constexpr int kWindowClasses[kClasses - kPlainClasses][2] = {{1, 2}, {1, 3}, {2, 1}, {2, 2}, {3, 1}, {4, 1}};
constexpr int kLanes = 32;                            // lanes of a full superblock
constexpr int kSuperblockColumns = 8 * kLanes;        // columns of a full superblock
constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;  // row numbers are int32

// The helpers below are `static`: the kernels' files are compiled for other instruction sets, and a shared inline
// function would let the linker pick the copy that an older CPU can't run.
static constexpr bool HasWindows(int row_class) { return row_class >= kPlainClasses; }
static constexpr int ClassBits(int row_class) {
  return HasWindows(row_class) ? kWindowClasses[row_class - kPlainClasses][0] : row_class % 8 + 1;
}
// Bits of a window beside those of its code.
static constexpr int ClassMemory(int row_class) {
  return HasWindows(row_class) ? kWindowClasses[row_class - kPlainClasses][1] : 0;
}
// Bits that a level is looked up by.
static constexpr int LevelBits(int row_class) { return ClassBits(row_class) + ClassMemory(row_class); }
static constexpr bool IsAffine(int row_class) { return row_class >= 8 && row_class < kPlainClasses; }
// Entries that the codebook has of a row. Of windows those of the lower half: the others are their negatives.
static constexpr int64_t CodebookEntries(int row_class) {
  return IsAffine(row_class) ? 0 : 1 << (LevelBits(row_class) - HasWindows(row_class));
}
// Lanes of the last superblock; 0 if K is a multiple of 256.
static constexpr int TailLanes(int64_t K) { return 4 * static_cast<int>((K % kSuperblockColumns + 31) / 32); }
static constexpr int64_t RowBytes(int bits, int64_t K) { return bits * 4 * ((K + 31) / 32); }

// `length` bits of a code, from bit `code_bit` on, lie in vector `vector` of the superblock, from bit `bit` on.
struct Field {
  int code_bit, length, vector, bit;
};

static constexpr int FieldCount(int bits, int j) {
  if (bits == 3) return j < 6 ? 1 : 2;
  if (bits == 5 || bits == 6) return 2;
  return bits == 7 ? 3 : 1;
}

// Field `i` of code `j` (0..7) of a lane.
static constexpr Field CodeField(int bits, int j, int i) {
  if (bits == 1) return {0, 1, 0, j};
  if (bits == 2) return {0, 2, j / 4, 2 * (j % 4)};
  if (bits == 3 && j < 6) return {0, 3, j / 2, 3 * (j % 2)};
  if (bits == 3) return i == 0 ? Field{0, 2, j - 6, 6} : Field{2, 1, 2, j};
  if (bits == 8) return {0, 8, j, 0};
  if (i == 0) return {0, 4, j / 2, 4 * (j % 2)};
  if (i == 1 && bits != 5) return {4, 2, 4 + j / 4, 2 * (j % 4)};
  return {bits - 1, 1, bits - 1, j};  // the top bit of 5 and of 7
}

// The same of windows, which follow each other in the bits of a lane, around its end, and overlap in `memory` bits; of
// their codes, with a memory of 0.
static constexpr int StreamStart(int bits, int memory, int j) { return (bits * (j + 8) - memory) % (8 * bits); }

static constexpr int StreamFieldCount(int bits, int memory, int j) {
  return StreamStart(bits, memory, j) % 8 + bits + memory > 8 ? 2 : 1;
}

static constexpr Field StreamField(int bits, int memory, int j, int i) {
  const int start = StreamStart(bits, memory, j), length = bits + memory, left = 8 - start % 8;
  const int first = length < left ? length : left;
  if (i == 0) return {0, first, start / 8, start % 8};
  return {first, length - first, (start + first) % (8 * bits) / 8, 0};
}

// The same of what levels are looked up by: of windows where there is a memory, else of codes.
static constexpr int LevelFieldCount(int bits, int memory, int j) {
  return memory ? StreamFieldCount(bits, memory, j) : FieldCount(bits, j);
}

static constexpr Field LevelField(int bits, int memory, int j, int i) {
  return memory ? StreamField(bits, memory, j, i) : CodeField(bits, j, i);
}

// How kernels read a row: the widths of a code and of what a window has beside it, as constants. kEntries: of a
// codebook.
template <int kWidth, int kRemembered = 0>
struct RowCode {
  static constexpr int kBits = kWidth, kMemory = kRemembered, kLevelBits = kBits + kMemory;
  static constexpr int kEntries = 1 << (kLevelBits - (kMemory > 0));

  static constexpr int Fields(int j) { return LevelFieldCount(kBits, kMemory, j); }
  static constexpr Field FieldAt(int j, int i) { return LevelField(kBits, kMemory, j, i); }
};

enum class CodebookType { kInt8, kFloat16 };

template <typename T>
struct Tensor {
  const T* data;
  int64_t size;  // elements
};

// A view of the tensors of one packed linear. Float16 values are held as their bits.
struct PackedLinear {
  int64_t N;  // rows, output channels
  int64_t K;  // columns, input channels
  int64_t rows_per_class[kClasses];
  Tensor<uint8_t> codes;
  CodebookType codebook_type;
  Tensor<void> codebook;
  Tensor<uint16_t> row_scale;
  Tensor<uint8_t> row_class;      // [N], or empty: all rows have one class
  Tensor<uint16_t> column_scale;  // [K], or empty: all 1
  Tensor<float> bias;             // [N], or empty: all 0

  // What the section "Validity" of docs/format.md demands, types and version aside (a view has them right by
  // construction). Returns an empty string, or a message that names the tensor.
  std::string Validate() const;
};

// The stored rows of one class, and where their data begin.
struct RowRun {
  int row_class;
  int64_t first, count;  // stored rows
  const uint8_t* codes;
  const void* codebook;       // null for affine rows
  const uint16_t* row_scale;  // null for rows of a float16 codebook
};

// A valid packed linear with what is derived from it, as kernels take it.
struct Layer {
  PackedLinear weights;
  RowRun runs[kClasses];
  int run_count;
  const int32_t* destination;  // [N] original row of each stored row; null: the same
};

// A `Layer` with the row index that it points to.
class IndexedLayer {
 public:
  // `weights` must be valid, and its tensors must outlive this object.
  explicit IndexedLayer(const PackedLinear& weights);
  IndexedLayer(const IndexedLayer&) = delete;
  IndexedLayer& operator=(const IndexedLayer&) = delete;

  const Layer& layer() const { return layer_; }
  const int32_t* stored() const { return stored_.empty() ? nullptr : stored_.data(); }  // as `Layer::destination`
  // Stored row of an original row.
  int64_t StoredRow(int64_t row) const { return stored_.empty() ? row : stored_[row]; }

 private:
  Layer layer_;
  std::vector<int32_t> destination_;
  std::vector<int32_t> stored_;
};

// The experts of a mixture, as kernels take them: expert e is rows e N..(e + 1) N - 1 of one packed linear. The rows of
// a class keep their order, so those of an expert stand together in each class.
class ExpertLayers {
 public:
  // `weights` must be valid, have a multiple of `experts` rows, and its tensors must outlive this object.
  ExpertLayers(const PackedLinear& weights, int64_t experts);
  ExpertLayers(const ExpertLayers&) = delete;
  ExpertLayers& operator=(const ExpertLayers&) = delete;

  // Its `weights` are those of the expert, but its `codes` are in the runs alone, of which `codes` has the size.
  const Layer& layer(int64_t expert) const { return layers_[expert]; }

 private:
  std::vector<Layer> layers_;
  std::vector<int32_t> destination_;
};

}  // namespace skim
