// The entry points of the kernels, one table for each instruction set, chosen when the library is registered.
#pragma once

#include <cstdint>

#include "skim/packed.h"

namespace skim {

enum class FloatType : int32_t { kFloat32 = 1, kFloat16 = 10 };  // the ONNX numbers

static constexpr int64_t FloatBytes(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

// Prepared activations: the tokens as float32, multiplied by the column scale, in the order that the kernel reads.
struct Kernels {
  const char* name;

  // Floats that the prepared form of one token takes.
  int64_t (*prepared_floats)(int64_t K);

  // x [M, K] of `type` -> prepared [M, prepared_floats(K)], 32-byte aligned.
  void (*prepare)(const Layer& layer, const void* x, FloatType type, int64_t M, float* prepared);

  // The stored rows begin..end of Y = X W^T + bias, written to their places in y [M, N] of `type`. What is written for
  // a row does not depend on begin and end. May throw std::bad_alloc.
  void (*matmul)(const Layer& layer, const float* prepared, int64_t M, int64_t begin, int64_t end, void* y,
                 FloatType type);

  // Stored row `row` of W, column scale included -> y [K] of `type`. May throw std::bad_alloc.
  void (*gather)(const Layer& layer, int64_t row, void* y, FloatType type);
};

const Kernels& ReferenceKernels();
#ifdef SKIM_AVX2
const Kernels& Avx2Kernels();
#endif

// The kernels that the environment variable SKIM_KERNEL names, or the fastest that the CPU can run if it is not set.
// Null if SKIM_KERNEL has a value that is unknown, or that this CPU can't run.
const Kernels* SelectKernels();

// The calling thread's scratch memory: at least `floats` floats, 32-byte aligned, valid until the same thread asks for
// the same slot again. It only grows. Throws std::bad_alloc.
enum class Scratch { kActivations, kTile, kSums };
float* ThreadScratch(Scratch slot, int64_t floats);

}  // namespace skim
