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

// d [64, 128] += a [64, 16] b [16, 128], halves with float32 sums, by a warpgroup. A warp has 16 of the rows. d[t] and
// a are as MultiplyAdd's, d[t] of tokens 8 t and on; b is a matrix descriptor (panels.cuh). From here to the end of
// WaitForMultiplies no thread may touch d, a or b.
SKIM_DEVICE void MultiplyAddAsync(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
#define SKIM_SUMS(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
      "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
      : SKIM_SUMS(0), SKIM_SUMS(1), SKIM_SUMS(2), SKIM_SUMS(3), SKIM_SUMS(4), SKIM_SUMS(5), SKIM_SUMS(6), SKIM_SUMS(7),
        SKIM_SUMS(8), SKIM_SUMS(9), SKIM_SUMS(10), SKIM_SUMS(11), SKIM_SUMS(12), SKIM_SUMS(13), SKIM_SUMS(14),
        SKIM_SUMS(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#undef SKIM_SUMS
}

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
