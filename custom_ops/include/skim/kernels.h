// The entry points of the kernels, one table for each instruction set, chosen when the library is registered.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "skim/packed.h"

namespace skim {

// The ONNX numbers. kBfloat16 is for GPUs alone (skim/cuda.h): what this file declares knows the other two.
enum class FloatType : int32_t { kFloat32 = 1, kFloat16 = 10, kBfloat16 = 16 };

static constexpr int64_t FloatBytes(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

constexpr int64_t kAlignment = 64;  // bytes, of scratch memory and prepared activations

// A way to multiply. Prepared activations are tokens, multiplied by the column scale, in the form and order that the
// kernel reads.
struct Arithmetic {
  // Bytes that the prepared form of one token takes, a multiple of kAlignment.
  int64_t (*prepared_bytes)(int64_t K);

  // x [M, K] of `type` -> prepared [M, prepared_bytes(K)], aligned. May throw std::bad_alloc.
  void (*prepare)(const Layer& layer, const void* x, FloatType type, int64_t M, void* prepared);

  // The stored rows begin..end of Y = X W^T + bias, written to their places in y [M, N] of `type`. What is written for
  // a row does not depend on begin and end. May throw std::bad_alloc.
  void (*matmul)(const Layer& layer, const void* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                 FloatType type);
};

static constexpr int64_t kMaxIntegerColumns = 65536;  // sums of products of two bytes a column fit into 32 bits

// Whether a layer has integer arithmetic.
static inline bool FitsInteger(const PackedLinear& weights) {
  return weights.K <= kMaxIntegerColumns &&
         (weights.codebook_type == CodebookType::kInt8 || weights.codebook.size == 0);
}

struct Kernels {
  const char* name;

  Arithmetic exact;    // float32 throughout
  Arithmetic integer;  // activations of 16 bits, int8 levels (cpu/integer.h); for layers that `FitsInteger` accepts

  // silu(gates) * ups, `count` floats of each -> y of `type`; silu(x) = x / (1 + exp(-x)).
  void (*swiglu)(const float* gates, const float* ups, int64_t count, void* y, FloatType type);

  // Stored row `row` of W, column scale included -> y [K] of `type`. May throw std::bad_alloc.
  void (*gather)(const Layer& layer, int64_t row, void* y, FloatType type);
};

const Kernels& ReferenceKernels();
#ifdef SKIM_X86
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();
#endif
#ifdef SKIM_ARM64
const Kernels& NeonKernels();
const Kernels& NeonDotprodKernels();
const Kernels& NeonI8mmKernels();
#endif

// The kernels that this CPU can run, the fastest first.
const std::vector<const Kernels*>& AvailableKernels();

// The kernels that the environment variable SKIM_KERNEL names, or the fastest if it is not set. Null if it has a value
// that is unknown, or that this CPU can't run.
const Kernels* SelectKernels();

// The calling thread's scratch memory: at least `bytes` bytes, aligned, valid until the same thread asks for the same
// slot again. It only grows. Throws std::bad_alloc.
enum class Scratch { kActivations, kToken, kTile, kSums };
void* ThreadScratch(Scratch slot, int64_t bytes);

template <typename T>
static T* ThreadScratch(Scratch slot, int64_t count) {
  return static_cast<T*>(ThreadScratch(slot, count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace skim
