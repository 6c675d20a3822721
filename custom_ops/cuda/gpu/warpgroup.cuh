// What only Hopper (sm_90a) has: a warpgroup, four warps that begin at a multiple of four, multiplies with one operand
// in shared memory, and goes on meanwhile. As device.cuh, a header of the same name runs it on a CPU.
#pragma once

#include <device.cuh>

namespace skim::cuda {

// The block's dynamic shared memory, aligned for operands.
SKIM_DEVICE char* AlignedSharedMemory() {
  extern __shared__ __align__(1024) char aligned[];
  return aligned;
}

// A pointer to shared memory as an address in it.
SKIM_DEVICE uint32_t SharedAddress(const char* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Bodies of functions d, a, b: %0 and on are the sums.
#define SKIM_SUMS(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define SKIM_EIGHT_SUMS(t)                                                                                \
  SKIM_SUMS(t), SKIM_SUMS(t + 1), SKIM_SUMS(t + 2), SKIM_SUMS(t + 3), SKIM_SUMS(t + 4), SKIM_SUMS(t + 5), \
      SKIM_SUMS(t + 6), SKIM_SUMS(t + 7)
#define SKIM_OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
#define SKIM_MULTIPLY_64(type)                                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                    \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                                \
               "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"                                                       \
               : SKIM_EIGHT_SUMS(0)                                                                           \
               : SKIM_OPERANDS)
#define SKIM_MULTIPLY_128(type)                                                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                   \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "   \
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "   \
               "%56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"              \
               : SKIM_EIGHT_SUMS(0), SKIM_EIGHT_SUMS(8)                                                       \
               : SKIM_OPERANDS)

// d [64, N] += a [64, 16] b [16, N], halves with float32 sums, by a warpgroup, for 64 or 128 tokens N. A warp has 16 of
// the rows. d[t] and a are as MultiplyAdd's, d[t] of tokens 8 t and on; b is a matrix descriptor (panels.cuh). From
// here to the end of WaitForMultiplies no thread may touch d, a or b.
SKIM_DEVICE void MultiplyAddAsync(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) { SKIM_MULTIPLY_64("f16"); }
SKIM_DEVICE void MultiplyAddAsync(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) { SKIM_MULTIPLY_128("f16"); }

// The same of bfloat16.
SKIM_DEVICE void MultiplyAddAsyncBfloat16(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  SKIM_MULTIPLY_64("bf16");
}
SKIM_DEVICE void MultiplyAddAsyncBfloat16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  SKIM_MULTIPLY_128("bf16");
}

#undef SKIM_MULTIPLY_128
#undef SKIM_MULTIPLY_64
#undef SKIM_OPERANDS
#undef SKIM_EIGHT_SUMS
#undef SKIM_SUMS

// Before multiplications whose registers were touched: orders that before them.
SKIM_DEVICE void FenceMultiplies() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of multiplications.
SKIM_DEVICE void CommitMultiplies() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` of the warpgroup's groups are not done.
template <int kPending>
SKIM_DEVICE void WaitForMultiplies() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Makes what this thread has written to shared memory visible to multiplications; a barrier must follow.
SKIM_DEVICE void FenceForMultiplies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barrier 1..15 of the block (0 is __syncthreads): `threads` threads come to it, in whole warps. Some of them may not
// wait for the others.
SKIM_DEVICE void WaitAtBarrier(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
SKIM_DEVICE void ArriveAtBarrier(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Changes the registers of each thread of a warpgroup, from what the kernel was launched with.
template <int kRegisters>
SKIM_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
SKIM_DEVICE void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace skim::cuda
