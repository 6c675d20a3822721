// fuzz_packed SEED FIRST COUNT: packed linears with something wrong in them, as a model from anywhere may have them.
// Whatever is accepted is multiplied by every kernel, on blocks of exactly the tensors' sizes: an access outside of
// them ends the program, and kernels must agree. Each input depends on SEED and its own number alone. Prints what it
// found; exits with 1 if that is anything.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "random_linear.h"
#include "skim/kernels.h"

namespace {

using namespace skim;

using Random = std::mt19937;

int Below(Random& random, int64_t bound) { return static_cast<int>(random() % bound); }

int64_t StrangeCount(Random& random, int64_t right) {
  right = std::clamp<int64_t>(right, -kMaxRows, kMaxRows);  // it may be strange already
  const int64_t strange[] = {0,
                             -1,
                             right - 1,
                             right + 1,
                             2 * right,
                             32,
                             256,
                             kMaxRows,
                             kMaxRows + 1,
                             int64_t{1} << 40,
                             std::numeric_limits<int64_t>::max(),
                             std::numeric_limits<int64_t>::min(),
                             static_cast<int64_t>(random())};
  return strange[Below(random, std::size(strange))];
}

template <typename T>
void Resize(Random& random, std::vector<T>& values) {
  const auto size = static_cast<int64_t>(values.size());
  const int64_t sizes[] = {0, size - 1, size + 1, 2 * size, size + Below(random, 64)};
  values.resize(std::max<int64_t>(sizes[Below(random, std::size(sizes))], 0));
}

// Random bytes in place of some, or in place of a whole element.
template <typename T>
void Overwrite(Random& random, std::vector<T>& values) {
  if (values.empty()) return;
  auto* bytes = reinterpret_cast<uint8_t*>(values.data());
  for (int count = 1 + Below(random, 4); count > 0; --count) {
    bytes[Below(random, values.size() * sizeof(T))] = static_cast<uint8_t>(random());
  }
}

template <typename T>
void Put(Random& random, std::vector<T>& values, std::initializer_list<T> strange) {
  if (!values.empty()) values[Below(random, values.size())] = strange.begin()[Below(random, strange.size())];
}

template <typename Change>
void OfOneTensor(Random& random, RandomLinear& linear, Change change) {
  switch (Below(random, 7)) {
    case 0:
      return change(linear.codes);
    case 1:
      return change(linear.bytes);
    case 2:
      return change(linear.halves);
    case 3:
      return change(linear.row_scale);
    case 4:
      return change(linear.row_class);
    case 5:
      return change(linear.column_scale);
    default:
      return change(linear.bias);
  }
}

void Mutate(Random& random, RandomLinear& linear) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (Below(random, 10)) {
    case 0:
      linear.N = StrangeCount(random, linear.N);
      break;
    case 1:
      linear.K = StrangeCount(random, linear.K);
      break;
    case 2: {
      int64_t& count = linear.rows_per_class[Below(random, kClasses)];
      count = StrangeCount(random, count);
      break;
    }
    case 3:
      std::swap(linear.rows_per_class[Below(random, kClasses)], linear.rows_per_class[Below(random, kClasses)]);
      break;
    case 4:
      OfOneTensor(random, linear, [&](auto& values) { Resize(random, values); });
      break;
    case 5:
      linear.type = linear.type == CodebookType::kInt8 ? CodebookType::kFloat16 : CodebookType::kInt8;
      break;
    case 6:
      // Zeros, the least and the largest numbers, infinity, and what is none.
      Put<uint16_t>(random, Below(random, 2) ? linear.row_scale : linear.column_scale,
                    {0, 0x8000, 1, 0x7bff, 0xfbff, 0x7c00, 0x7e00});
      break;
    case 7:
      Put<float>(random, linear.bias, {0.0f, -0.0f, 1e-45f, 3e38f, -3e38f, kInfinity, std::nanf("")});
      break;
    case 8:
      Put<uint8_t>(random, linear.row_class, {0, 1, 7, 8, 15, 16, 128, 255});
      break;
    default:
      OfOneTensor(random, linear, [&](auto& values) { Overwrite(random, values); });
  }
}

bool Same(const std::vector<float>& one, const std::vector<float>& other) {
  for (size_t i = 0; i < one.size(); ++i) {
    if (one[i] != other[i] && !(std::isnan(one[i]) && std::isnan(other[i]))) return false;
  }
  return true;
}

// The product with one token, rows in two parts; what is written is no more than the output.
std::vector<float> Product(const Layer& layer, const Arithmetic& arithmetic, const std::vector<float>& x,
                           int64_t middle) {
  const int64_t N = layer.weights.N;
  const Block<float> block(x), y(std::vector<float>(N, std::nanf("")));
  void* prepared = ThreadScratch(Scratch::kActivations, arithmetic.prepared_bytes(layer.weights.K));
  arithmetic.prepare(layer, block.data.get(), FloatType::kFloat32, 1, prepared);
  arithmetic.matmul(layer, prepared, 1, middle, N, y.data.get(), FloatType::kFloat32);
  arithmetic.matmul(layer, prepared, 1, 0, middle, y.data.get(), FloatType::kFloat32);
  return {y.data.get(), y.data.get() + N};
}

std::vector<float> Row(const IndexedLayer& indexed, const Kernels& kernels, int64_t n) {
  const Block<float> row(std::vector<float>(indexed.layer().weights.K, std::nanf("")));
  kernels.gather(indexed.layer(), indexed.StoredRow(n), row.data.get(), FloatType::kFloat32);
  return {row.data.get(), row.data.get() + row.size};
}

// How much is summed for an element of a product, without regard to signs: rounding is in proportion to it.
double Size(const IndexedLayer& indexed, int64_t n, const std::vector<float>& x) {
  const PackedLinear& weights = indexed.layer().weights;
  const int64_t stored = indexed.StoredRow(n);
  const RowRun* run = indexed.layer().runs;
  while (stored >= run->first + run->count) ++run;
  double offset = 0;
  if (IsAffine(run->row_class)) offset = std::abs(HalfToFloat(run->row_scale[2 * (stored - run->first) + 1]));
  const std::vector<float> row = Row(indexed, ReferenceKernels(), n);
  double size = weights.bias.size ? std::abs(weights.bias.data[n]) : 0;
  for (int64_t k = 0; k < weights.K; ++k) {
    // An offset is multiplied with the sum of the activations, apart from the levels.
    const double scale = weights.column_scale.size ? HalfToFloat(weights.column_scale.data[k]) : 1;
    size += (std::abs(row[k]) + 2 * offset * scale) * std::abs(x[k]);
  }
  return size;
}

// Whether the rows, taken for those of experts, give what they give together.
bool SameOfExperts(const PackedLinear& weights, int64_t experts, const Arithmetic& arithmetic,
                   const std::vector<float>& x, const std::vector<float>& together) {
  const ExpertLayers layers(weights, experts);
  const int64_t rows = weights.N / experts;
  for (int64_t e = 0; e < experts; ++e) {
    const auto begin = together.begin() + e * rows;
    if (!Same(Product(layers.layer(e), arithmetic, x, rows / 2), {begin, begin + rows})) return false;
  }
  return true;
}

// What is wrong with the kernels on valid weights; null if nothing is.
const char* Complaint(Random& random, const PackedLinear& weights) {
  const IndexedLayer indexed(weights);
  const Layer& layer = indexed.layer();
  std::vector<float> x(weights.K);
  for (float& value : x) value = std::normal_distribution<float>()(random);
  const int64_t middle = Below(random, weights.N + 1);
  const Kernels& reference = ReferenceKernels();
  const std::vector<float> want = Product(layer, reference.exact, x, middle);
  int64_t experts = 1 + Below(random, weights.N);
  while (weights.N % experts) --experts;
  const bool integer = FitsInteger(weights);
  std::vector<float> rounded;
  if (integer) rounded = Product(layer, reference.integer, x, middle);
  for (const Kernels* kernels : AvailableKernels()) {
    if (integer && !Same(Product(layer, kernels->integer, x, middle), rounded)) return "integer matmul";
    const std::vector<float> got = Product(layer, kernels->exact, x, middle);
    if (!SameOfExperts(weights, experts, kernels->exact, x, got)) return "experts";
    for (int64_t n = 0; n < weights.N; ++n) {
      const double size = Size(indexed, n, x);
      if (!(std::abs(double{got[n]} - want[n]) <= 1e-5 * size + 1e-30) && got[n] != want[n]) return "matmul";
    }
    const int64_t n = Below(random, weights.N);
    if (!Same(Row(indexed, *kernels, n), Row(indexed, reference, n))) return "gather";
  }
  return nullptr;
}

RandomLinear SmallLinear(Random& random) {
  const int64_t near[] = {0, 31, 127, 255};
  const int64_t N = 1 + Below(random, 5), K = 1 + near[Below(random, std::size(near))] + Below(random, 40);
  std::vector<int> classes(1 + Below(random, 3));
  for (int& c : classes) c = Below(random, kClasses);
  return {N, K, classes, Below(random, 2) ? CodebookType::kInt8 : CodebookType::kFloat16, random};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fuzz_packed SEED FIRST COUNT\n");
    return 2;
  }
  const auto seed = static_cast<uint32_t>(std::atoll(argv[1]));
  const int64_t first = std::atoll(argv[2]), count = std::atoll(argv[3]);
  int64_t accepted = 0, findings = 0;
  for (int64_t i = first; i < first + count; ++i) {
    std::seed_seq sequence{seed, static_cast<uint32_t>(i)};
    Random random(sequence);
    RandomLinear linear = SmallLinear(random);
    for (int mutations = Below(random, 4); mutations > 0; --mutations) Mutate(random, linear);
    const Blocks blocks(linear);
    if (!blocks.view().Validate().empty()) continue;
    ++accepted;
    if (const char* complaint = Complaint(random, blocks.view())) {
      ++findings;
      std::printf("input %lld: %s\n", static_cast<long long>(i), complaint);
    }
  }
  std::printf("%lld inputs, %lld accepted, %lld findings\n", static_cast<long long>(count),
              static_cast<long long>(accepted), static_cast<long long>(findings));
  return findings ? 1 : 0;
}
