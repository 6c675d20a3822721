// What the kernels use of CUDA, for a C++ compiler: they find this file where they include <cuda.h>.
#pragma once

#include "fibers.h"

#define __global__
#define __launch_bounds__(threads)
#define __shared__ static
#define alignas(bytes) __attribute__((aligned(bytes)))  // C++ has alignas before `static` only
#define threadIdx on_cpu::on_thread
#define blockIdx on_cpu::group

using std::min;

struct __attribute__((aligned(16))) float4 {
  float x, y, z, w;
};

inline void __syncthreads() { on_cpu::barrier(); }
