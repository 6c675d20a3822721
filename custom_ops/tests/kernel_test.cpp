// Compares the kernels with a definition written down once more, on blocks of exactly the tensors' sizes: a read or
// write behind a tensor ends the program; built with AddressSanitizer, any outside of one. Prints each failure; exits
// with 1 if there is one. Arguments are numbers of columns to try in place of all that are listed below.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../cpu/half.h"
#include "random_linear.h"
#include "skim/kernels.h"

namespace {

using namespace skim;

int failures = 0;

void Check(bool ok, const char* what, const char* kernel, int64_t N, int64_t K, int64_t M) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s, kernel %s, N=%ld, K=%ld, M=%ld\n", what, kernel, long{N}, long{K}, long{M});
}

// A packed linear of random content in blocks of its own.
struct Case {
  RandomLinear content;
  Blocks blocks;
  PackedLinear packed;

  explicit Case(RandomLinear random) : content(std::move(random)), blocks(content), packed(blocks.view()) {}
  const std::vector<double>& weights() const { return content.weights; }
};

template <typename T>
double Value(T value);
template <>
double Value(float value) {
  return value;
}
template <>
double Value(uint16_t value) {
  return HalfToFloat(value);
}

double RelativeError(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);  // NaN, from an element that was not written, fails every comparison
}

using Draw = float (*)(std::mt19937& random);  // an activation
float Normal(std::mt19937& random) { return std::normal_distribution<float>()(random); }
float One(std::mt19937&) { return 1; }

template <typename T>
void TestKernels(const Kernels& kernels, const Case& c, int64_t M, std::mt19937& random, Draw draw = Normal) {
  const FloatType type = sizeof(T) == 4 ? FloatType::kFloat32 : FloatType::kFloat16;
  const double bound = sizeof(T) == 4 ? 1e-5 : 1e-3;
  const int64_t N = c.packed.N, K = c.packed.K;
  const IndexedLayer indexed(c.packed);
  const Layer& layer = indexed.layer();

  std::vector<T> x_values(M * K);
  for (T& x : x_values) {
    const float value = draw(random);
    if constexpr (sizeof(T) == 4) {
      x = value;
    } else {
      x = FloatToHalf(value);
    }
  }
  const Block<T> x(x_values);
  T nan;
  std::memset(&nan, 0xff, sizeof nan);
  const Block<T> y(std::vector<T>(M * N, nan));
  std::vector<double> want(M * N), got(M * N);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = c.packed.bias.data[n];
      for (int64_t k = 0; k < K; ++k) sum += c.weights()[n * K + k] * Value(x.data[m * K + k]);
      want[m * N + n] = sum;
    }
  }
  const auto product = [&](const Arithmetic& arithmetic) {
    std::memcpy(y.data.get(), std::vector<T>(M * N, nan).data(), M * N * sizeof(T));
    void* prepared = ThreadScratch(Scratch::kActivations, M * arithmetic.prepared_bytes(K));
    arithmetic.prepare(layer, x.data.get(), type, M, prepared);
    const int64_t middle = N / 3;
    arithmetic.matmul(layer, prepared, M, middle, N, y.data.get(), type);
    arithmetic.matmul(layer, prepared, M, 0, middle, y.data.get(), type);
    for (int64_t i = 0; i < M * N; ++i) got[i] = Value(y.data[i]);
  };
  product(kernels.exact);
  Check(RelativeError(got, want) < bound, "matmul", kernels.name, N, K, M);
  if (FitsInteger(c.packed)) {
    product(ReferenceKernels().integer);
    Check(RelativeError(got, want) < 1e-3, "integer matmul of the reference", kernels.name, N, K, M);
    const std::vector<double> reference = got;
    product(kernels.integer);
    Check(got == reference, "integer matmul", kernels.name, N, K, M);
  }

  std::vector<double> rows(N * K);
  for (int64_t n = 0; n < N; ++n) {
    const Block<T> row(std::vector<T>(K, nan));
    kernels.gather(layer, indexed.StoredRow(n), row.data.get(), type);
    for (int64_t k = 0; k < K; ++k) rows[n * K + k] = Value(row.data[k]);
  }
  Check(RelativeError(rows, c.weights()) < bound, "gather", kernels.name, N, K, M);
}

// silu(gate) * up against double, and the same bits from all kernels; lengths that fill no vector are among them.
void TestSwiglu(const std::vector<const Kernels*>& tables, std::mt19937& random) {
  for (int64_t count : {1, 7, 16, 100, 1000}) {
    std::vector<float> gates(count), ups(count);
    for (int64_t i = 0; i < count; ++i) {
      gates[i] = std::normal_distribution<float>(0, i % 2 ? 3.0f : 60.0f)(random);
      ups[i] = std::normal_distribution<float>()(random);
    }
    gates[0] = -200;  // beyond what exp can tell from 0
    const Block<float> gate(gates), up(ups);
    std::vector<double> want(count);
    for (int64_t i = 0; i < count; ++i) want[i] = gates[i] / (1 + std::exp(-double{gates[i]})) * ups[i];
    std::vector<double> reference;
    for (const Kernels* kernels : tables) {
      const Block<float> y(std::vector<float>(count, std::nanf("")));
      const Block<uint16_t> half(std::vector<uint16_t>(count, 0xffff));
      kernels->swiglu(gate.data.get(), up.data.get(), count, y.data.get(), FloatType::kFloat32);
      kernels->swiglu(gate.data.get(), up.data.get(), count, half.data.get(), FloatType::kFloat16);
      std::vector<double> got(count);
      for (int64_t i = 0; i < count; ++i) {
        got[i] = y.data[i];
        Check(half.data[i] == FloatToHalf(y.data[i]), "swiglu in float16", kernels->name, count, 0, 0);
        Check(std::abs(got[i] - want[i]) <= 1e-6 * std::abs(want[i]) + 1e-30, "swiglu", kernels->name, count, i, 0);
      }
      if (reference.empty()) reference = got;
      Check(got == reference, "swiglu, the same bits", kernels->name, count, 0, 0);
    }
  }
}

// All float16 values survive a round trip, and rounding goes to the nearest.
void TestHalf() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (!HalfIsFinite(half)) continue;
    Check(FloatToHalf(HalfToFloat(half)) == half, "float16 round trip", "none", bits, 0, 0);
    const auto next = static_cast<uint16_t>(half + 1);
    if ((half & 0x7fff) == 0x7bff) continue;
    const float middle = (HalfToFloat(half) + HalfToFloat(next)) / 2;
    Check(FloatToHalf(middle) == (half & 1 ? next : half), "float16 tie", "none", bits, 0, 0);
    Check(FloatToHalf(std::nextafter(middle, HalfToFloat(next))) == next, "float16 rounding", "none", bits, 0, 0);
  }
}

// Counts whose products are beyond 64 bits are refused before they are multiplied.
void TestLargestCounts() {
  PackedLinear packed{};
  packed.N = packed.K = kMaxRows;
  for (int64_t& count : packed.rows_per_class) count = kMaxRows;
  const std::string message = packed.Validate();
  Check(message.find("must sum to N") != std::string::npos, "validation of counts", "none", packed.N, packed.K, 0);
}

}  // namespace

int main(int argc, char** argv) {
  // Every number of lanes of the last superblock, with and without full ones before it.
  std::vector<int64_t> columns{1,   31,  32,  33,  64,  90,  128, 150,  192, 200,
                               225, 255, 256, 257, 320, 384, 576, 1000, 1300};
  if (argc > 1) columns.clear();
  for (int i = 1; i < argc; ++i) columns.push_back(std::atoll(argv[i]));
  std::mt19937 random(1);
  TestHalf();
  TestLargestCounts();
  const std::vector<const Kernels*>& tables = AvailableKernels();
  TestSwiglu(tables, random);
  int cases = 0;
  for (int64_t K : columns) {
    for (CodebookType type : {CodebookType::kInt8, CodebookType::kFloat16}) {
      for (int classes = 0; classes <= kClasses; ++classes) {
        std::vector<int> list{classes};
        if (classes == kClasses) {
          list.resize(kClasses);
          std::iota(list.begin(), list.end(), 0);
        }
        const Case c(RandomLinear(classes == kClasses ? 50 : 5, K, list, type, random));
        Check(c.packed.Validate().empty(), "validation", "none", c.packed.N, K, 0);
        for (const Kernels* kernels : tables) {
          for (int64_t M : {1, 2, 3, 7, 9, 11}) TestKernels<float>(*kernels, c, M, random);
          for (int64_t M : {1, 5, 10}) TestKernels<uint16_t>(*kernels, c, M, random);
        }
        ++cases;
      }
    }
  }
  // Integer sums that are as large as they can be.
  for (bool largest : {false, true}) {
    RandomLinear extreme(12, kMaxIntegerColumns, {2, 3, 7, 10, 15}, CodebookType::kInt8, random);
    extreme.MakeExtreme(largest);
    const Case c(std::move(extreme));
    Check(c.packed.Validate().empty(), "validation of extreme levels", "none", c.packed.N, c.packed.K, 0);
    for (const Kernels* kernels : tables) {
      for (int64_t M : {1, 3, 9}) TestKernels<float>(*kernels, c, M, random, One);
    }
    ++cases;
  }
  std::printf("%d cases, %d failures, kernels:", cases, failures);
  for (const Kernels* kernels : tables) std::printf(" %s", kernels->name);
  std::printf("\n");
  return failures ? 1 : 0;
}
