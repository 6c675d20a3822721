// Multiplies by one random layer again and again, for tools that count instructions (`python benchmarks instructions`).
//
//     SKIM_KERNEL=avx2 skim_kernel_loop CLASS N K M exact|integer REPETITIONS
//
// All rows have the class CLASS (docs/format.md), the codebook is int8, K is a multiple of 32, so that any bytes are
// valid codes. Everything but the repetitions costs the same whatever their number.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "skim/kernels.h"

namespace {

using namespace skim;

int Usage(const char* what) {
  std::fprintf(stderr, "%s\nusage: skim_kernel_loop CLASS N K M exact|integer REPETITIONS\n", what);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return Usage("six arguments are needed");
  const int row_class = std::atoi(argv[1]);
  const int64_t N = std::atoll(argv[2]), K = std::atoll(argv[3]), M = std::atoll(argv[4]);
  const bool integer = std::strcmp(argv[5], "integer") == 0;
  const int64_t repetitions = std::atoll(argv[6]);
  if (row_class < 0 || row_class >= kClasses) return Usage("CLASS must be 0..21");
  if (N < 1 || K < 1 || K % 32 != 0 || M < 1) return Usage("N, K and M must be positive, K a multiple of 32");
  if (!integer && std::strcmp(argv[5], "exact") != 0) return Usage("the arithmetic must be exact or integer");
  const Kernels* kernels = SelectKernels();
  if (kernels == nullptr) return Usage("SKIM_KERNEL names no kernel that this CPU can run");

  const bool affine = IsAffine(row_class);
  std::minstd_rand random(1);
  std::vector<uint8_t> codes(N * RowBytes(ClassBits(row_class), K));
  std::vector<int8_t> codebook(N * CodebookEntries(row_class));
  for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random() >> 8);
  for (int8_t& entry : codebook) entry = static_cast<int8_t>(random() % 255 - 127);
  const std::vector<uint16_t> row_scale(affine ? 2 * N : N, 0x2000);  // 2^-7 in float16
  std::vector<float> x(M * K), y(M * N);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;

  PackedLinear weights{};
  weights.N = N;
  weights.K = K;
  weights.rows_per_class[row_class] = N;
  weights.codes = {codes.data(), static_cast<int64_t>(codes.size())};
  weights.codebook_type = CodebookType::kInt8;
  weights.codebook = {codebook.data(), static_cast<int64_t>(codebook.size())};
  weights.row_scale = {row_scale.data(), static_cast<int64_t>(row_scale.size())};
  const std::string error = weights.Validate();
  if (!error.empty()) return Usage(error.c_str());
  if (integer && !FitsInteger(weights)) return Usage("the layer has no integer arithmetic");

  const IndexedLayer indexed(weights);
  const Arithmetic& arithmetic = integer ? kernels->integer : kernels->exact;
  void* prepared = ThreadScratch(Scratch::kActivations, M * arithmetic.prepared_bytes(K));
  for (int64_t i = 0; i < repetitions; ++i) {
    arithmetic.prepare(indexed.layer(), x.data(), FloatType::kFloat32, M, prepared);
    arithmetic.matmul(indexed.layer(), prepared, M, 0, N, y.data(), FloatType::kFloat32);
  }
  std::printf("%s %g\n", kernels->name, static_cast<double>(y[0]));
}
