// The contract of the CUDA kernels: what they compute, and the layout of all that they read. They know nothing of ONNX
// Runtime, allocate nothing and wait for nothing, so a CUDA graph can capture them.
#pragma once

#include <cstdint>

#include "skim/kernels.h"
#include "skim/packed.h"

namespace skim::cuda {

// A `Layer` whose pointers are device pointers. Beyond docs/format.md:
// - the codes and the codebook of each of `runs` begin at multiples of kDeviceAlignment bytes;
// - the column scale is divided by a power of two, `column_unit`, so that no element is above 1: a product with a
//   float16 activation can't overflow then.
// `weights` is read for N, K, codebook_type, column_scale and bias only.
struct DeviceLayer {
  Layer layer;
  float column_unit;
  const int32_t* stored;  // [N] stored row of each original row; null: the same
  bool integers;          // whether activations may be rounded to integers (docs/format.md, "Arithmetic")
};

constexpr int64_t kDeviceAlignment = 16;

// What becomes of a product p = X W^T + bias where it is stored.
enum class Epilogue {
  kStore,     // y = p
  kSilu,      // y = p / (1 + exp(-p))
  kMultiply,  // y = y * p: with kSilu before it, a gated feed-forward network's first half
};

// The calling thread's current device.
struct Gpu {
  int capability;  // such as 75 for compute capability 7.5; 0 if there is no device
  int multiprocessors;
  int shared_bytes;        // of shared memory, in a multiprocessor
  int block_shared_bytes;  // that a block may have of them
};

Gpu CurrentGpu();

constexpr int kAmpereCapability = 80;  // from which on there are bfloat16, and products of bytes by the warp
constexpr int kHopperCapability = 90;  // which has instructions that no other one has, newer ones neither

// x [M, K] -> y [M, N], both of `type`, on the device, row after row, aligned to 16 bytes. M may be anything from 0.
// float16: products of float16 with float32 sums, on tensor cores. bfloat16: the same, and entries of float16 codebooks
// are rounded to it; cudaErrorNotSupported on devices without it. float32: float32 throughout.
// Where the layer allows for it, up to 16 tokens of 16 bits are multiplied as integers from Ampere on, if all rows are
// affine or have int8 codebooks of up to 4 bits, K is at most kMaxIntegerColumns and there is room for the activations.
// The order of additions depends on the shapes and the kind of GPU alone: the same input gives the same bits there.
// `stream` is a cudaStream_t. Returns a cudaError_t: 0, or why the kernel could not be launched.
int Matmul(const DeviceLayer& layer, const void* x, FloatType type, int64_t M, Epilogue epilogue, void* y,
           void* stream);

// ids [count] on the device -> y [count, K] of `type`: rows of W, column scale included. The row of an id outside of
// 0..N-1 is not a number: the device can't refuse it. Types as in Matmul.
int Gather(const DeviceLayer& layer, const int64_t* ids, int64_t count, void* y, FloatType type, void* stream);

// `bytes` bytes on the device, aligned to 16 bytes -> *sum, there too: what skim::SumWords (skim/read_memory.h) makes
// of them. Hardly anything else is done than reading, so it tells how fast that is.
int SumWords(const void* data, int64_t bytes, uint64_t* sum, void* stream);

}  // namespace skim::cuda
