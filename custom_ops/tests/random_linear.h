// Packed linears of random content for the tests, in blocks of exactly their tensors' sizes.
#pragma once

#ifndef __SANITIZE_ADDRESS__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "../cpu/half.h"
#include "skim/packed.h"

namespace skim {

// Memory with nothing behind it that may be touched. AddressSanitizer does that better with the heap's.
#ifdef __SANITIZE_ADDRESS__
template <typename T>
std::unique_ptr<T[]> Allocate(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}
#else
constexpr int64_t kPage = 65536;  // no system's pages are larger

struct Unmap {
  void* start;
  int64_t bytes;
  void operator()(void*) const { munmap(start, bytes); }
};

template <typename T>
std::unique_ptr<T[], Unmap> Allocate(int64_t size) {
  const int64_t bytes = size * static_cast<int64_t>(sizeof(T)), usable = (bytes + kPage - 1) / kPage * kPage;
  void* start = mmap(nullptr, usable + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + usable, kPage, PROT_NONE) != 0) {
    std::perror("guarded memory");
    std::exit(1);
  }
  T* data = reinterpret_cast<T*>(static_cast<char*>(start) + usable - bytes);
  return {data, Unmap{start, usable + kPage}};
}
#endif

// A block of exactly `size` elements: a vector may own more.
template <typename T>
struct Block {
  decltype(Allocate<T>(0)) data;
  int64_t size;
  explicit Block(const std::vector<T>& values) : data(Allocate<T>(values.size())), size(values.size()) {
    for (int64_t i = 0; i < size; ++i) data[i] = values[i];
  }
  Tensor<T> tensor() const { return {data.get(), size}; }
};

// The tensors of a packed linear with random content, and the weights [N, K] that they mean.
struct RandomLinear {
  int64_t N, K;
  int64_t rows_per_class[kClasses] = {};
  CodebookType type;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> bytes;    // the codebook, if it is int8
  std::vector<uint16_t> halves;  // the codebook, if it is float16
  std::vector<uint16_t> row_scale;
  std::vector<uint8_t> row_class;  // empty if there is one class only
  std::vector<uint16_t> column_scale;
  std::vector<float> bias;
  std::vector<double> weights;

  RandomLinear(int64_t N, int64_t K, const std::vector<int>& classes, CodebookType type, std::mt19937& random)
      : N(N), K(K), type(type), row_class(N), column_scale(K), bias(N), weights(N * K) {
    const auto uniform = [&](double low, double high) {
      return std::uniform_real_distribution<double>(low, high)(random);
    };
    const auto half = [&](double value) { return FloatToHalf(static_cast<float>(value)); };
    for (uint8_t& c : row_class) c = static_cast<uint8_t>(classes[random() % classes.size()]);
    for (uint16_t& s : column_scale) s = half(uniform(0.5, 2));
    for (float& b : bias) b = static_cast<float>(uniform(-1, 1));
    const bool int8 = type == CodebookType::kInt8;
    for (int c = 0; c < kClasses; ++c) {
      const int bits = ClassBits(c);
      for (int64_t n = 0; n < N; ++n) {
        if (row_class[n] != c) continue;
        ++rows_per_class[c];
        std::vector<double> level(1 << LevelBits(c));
        const uint16_t scale = half(uniform(1e-3, 1e-2)), offset = half(uniform(-0.05, 0.05));
        for (int q = 0; q < 1 << LevelBits(c); ++q) {
          if (IsAffine(c)) {
            level[q] = HalfToFloat(offset) + double{HalfToFloat(scale)} * (q - (1 << (bits - 1)));
          } else if (q >= CodebookEntries(c)) {
            level[q] = -level[2 * CodebookEntries(c) - 1 - q];
          } else if (int8) {
            bytes.push_back(static_cast<uint8_t>(random() % 255 - 127));
            level[q] = double{HalfToFloat(scale)} * static_cast<int8_t>(bytes.back());
          } else {
            halves.push_back(half(uniform(-0.5, 0.5)));
            level[q] = HalfToFloat(halves.back());
          }
        }
        if (IsAffine(c) || int8) row_scale.push_back(scale);
        if (IsAffine(c)) row_scale.push_back(offset);
        const size_t row = codes.size();
        codes.resize(row + RowBytes(bits, K));
        for (int64_t k = 0; k < K; ++k) SetCode(c, row, k, static_cast<int>(random() % (1 << bits)));
        for (int64_t k = 0; k < K; ++k) weights[n * K + k] = level[Window(c, row, k)] * HalfToFloat(column_scale[k]);
      }
    }
    if (classes.size() == 1) row_class.clear();
  }

  // Bit t of code j of the lane of column k, around the end of the lane: its byte and its place there. The bits of the
  // codes of windows follow each other.
  std::pair<size_t, int> Bit(int row_class, size_t row, int64_t k, int t) const {
    const int bits = ClassBits(row_class), lanes = (k / 256 + 1) * 256 <= K ? 32 : TailLanes(K);
    const size_t lane = row + k / 256 * bits * 32 + k % 256 % lanes;
    const int j = static_cast<int>(k % 256 / lanes);
    if (HasWindows(row_class)) {
      const int at = (bits * (j + 8) + t) % (8 * bits);
      return {lane + at / 8 * lanes, at % 8};
    }
    for (int i = 0; i < FieldCount(bits, j); ++i) {
      const Field f = CodeField(bits, j, i);
      if (t >= f.code_bit && t < f.code_bit + f.length) return {lane + f.vector * lanes, f.bit + t - f.code_bit};
    }
    return {lane, 0};  // not reached
  }

  void SetCode(int row_class, size_t row, int64_t k, int code) {
    for (int t = 0; t < ClassBits(row_class); ++t) {
      const auto [byte, bit] = Bit(row_class, row, k, t);
      codes[byte] |= ((code >> t) & 1) << bit;
    }
  }

  // What the level of column k is looked up by.
  int Window(int row_class, size_t row, int64_t k) const {
    const int memory = ClassMemory(row_class);
    int window = 0;
    for (int t = 0; t < LevelBits(row_class); ++t) {
      const auto [byte, bit] = Bit(row_class, row, k, t - memory);
      window |= ((codes[byte] >> bit) & 1) << t;
    }
    return window;
  }

  // Makes all levels the largest of a byte, 127, or the smallest, -128 or in rows with windows -127, times 2^-7; affine
  // rows add 2^-7. Column scales become 1. For an int8 codebook, several classes, and K that need no padding.
  void MakeExtreme(bool largest) {
    const auto fill = [](auto& values, int value) { std::fill(values.begin(), values.end(), value); };
    fill(codes, largest ? 0xff : 0);
    fill(bytes, largest ? 127 : 0x80);
    int64_t of_windows = 0;
    for (int c = 0; c < kClasses; ++c) of_windows += HasWindows(c) ? rows_per_class[c] * CodebookEntries(c) : 0;
    std::fill(bytes.end() - of_windows, bytes.end(), 0x81);  // which windows of ones negate
    fill(row_scale, FloatToHalf(0x1p-7f));
    fill(column_scale, FloatToHalf(1.0f));
    for (int64_t n = 0; n < N; ++n) {
      const int half = 1 << (ClassBits(row_class[n]) - 1);
      const int lowest = HasWindows(row_class[n]) ? -127 : -128;
      const int level = !IsAffine(row_class[n]) ? (largest ? 127 : lowest) : (largest ? half - 1 : -half) + 1;
      std::fill_n(weights.begin() + n * K, K, 0x1p-7 * level);
    }
  }
};

// The tensors of a linear, each in a block of its own.
class Blocks {
 public:
  explicit Blocks(const RandomLinear& linear)
      : codes_(linear.codes),
        bytes_(linear.bytes),
        halves_(linear.halves),
        row_scale_(linear.row_scale),
        row_class_(linear.row_class),
        column_scale_(linear.column_scale),
        bias_(linear.bias) {
    view_.N = linear.N;
    view_.K = linear.K;
    std::copy(std::begin(linear.rows_per_class), std::end(linear.rows_per_class), view_.rows_per_class);
    view_.codes = codes_.tensor();
    view_.codebook_type = linear.type;
    view_.codebook = linear.type == CodebookType::kInt8 ? Tensor<void>{bytes_.data.get(), bytes_.size}
                                                        : Tensor<void>{halves_.data.get(), halves_.size};
    view_.row_scale = row_scale_.tensor();
    view_.row_class = row_class_.tensor();
    view_.column_scale = column_scale_.tensor();
    view_.bias = bias_.tensor();
  }

  const PackedLinear& view() const { return view_; }

 private:
  Block<uint8_t> codes_, bytes_;
  Block<uint16_t> halves_, row_scale_;
  Block<uint8_t> row_class_;
  Block<uint16_t> column_scale_;
  Block<float> bias_;
  PackedLinear view_{};
};

}  // namespace skim
