// The instructions of a GPU that C++ has no words for. Kernels use these, the vector types and the barriers of CUDA,
// and nothing else, so a header of the same name can run them on a CPU.
//
// Two halves in a register are a `half2`, an uint32_t with the first one in its low bits; two of bfloat16 a `bfloat2`.
#pragma once

#include <cstdint>

#define SKIM_DEVICE __device__ __forceinline__

namespace skim::cuda {

// Whether there are instructions for bfloat16: Turing has none, and nothing that uses them must be compiled for it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kHasBfloat16 = false;
#else
constexpr bool kHasBfloat16 = true;
#endif
constexpr bool kHasWideBytes = kHasBfloat16;  // MultiplyAddBytes, which came with it

// The bytes of (a, b), numbered 0..7 from a's lowest, that the four low nibbles of `selector` name. Bit 3 of these
// nibbles must be 0; the selector's high half does not matter.
SKIM_DEVICE uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

SKIM_DEVICE uint32_t SubtractHalf2(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}

SKIM_DEVICE uint32_t MultiplyHalf2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// a b + c, rounded once; sm_80 has no instruction for a sum or a product alone.
SKIM_DEVICE uint32_t FmaBfloat2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// The same, or 0 where it is negative.
SKIM_DEVICE uint32_t FmaReluBfloat2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.relu.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

SKIM_DEVICE float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }

SKIM_DEVICE float HalfToFloat(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

// Rounds to nearest, ties to even; too large values become infinite.
SKIM_DEVICE uint16_t FloatToHalf(float value) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

// Rounds to nearest, ties to even; too large values become infinite.
SKIM_DEVICE uint32_t FloatsToBfloat2(float first, float second) {
  uint32_t two;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(second), "f"(first));
  return two;
}

// d [16, 8] += a [16, 16] b [16, 8], halves with float32 sums, by the 32 threads of a warp together (mma.m16n8k16).
// With g = lane / 4 and c = lane % 4, a thread holds
//   a: rows g and g + 8 of columns 2c, 2c + 1 (a[0], a[1]), then of columns 2c + 8, 2c + 9 (a[2], a[3]);
//   b: rows 2c, 2c + 1 of column g, then rows 2c + 8, 2c + 9;
//   d: columns 2c and 2c + 1 of row g, then of row g + 8.
SKIM_DEVICE void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {  // Turing multiplies half as many columns at once
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}

// The same of bfloat16.
SKIM_DEVICE void MultiplyAddBfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d [16, 8] += a [16, 32] b [32, 8], bytes with sums of 32 bits that wrap around, by a warp (mma.m16n8k32). a is signed
// or not, and so is b. A thread holds
//   a: rows g and g + 8 of columns 4c to 4c + 3 (a[0], a[1]), then of columns 4c + 16 to 4c + 19 (a[2], a[3]);
//   b: rows 4c to 4c + 3 of column g, then rows 4c + 16 to 4c + 19;
//   d: as MultiplyAdd's.
template <bool kSignedA, bool kSignedB>
SKIM_DEVICE void MultiplyAddBytes(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#define SKIM_MULTIPLY_BYTES(a_type, b_type)                      \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." a_type "." b_type \
      ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "      \
      "{%0, %1, %2, %3};"                                        \
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (kSignedA && kSignedB) {
    SKIM_MULTIPLY_BYTES("s8", "s8");
  } else if constexpr (kSignedA) {
    SKIM_MULTIPLY_BYTES("s8", "u8");
  } else if constexpr (kSignedB) {
    SKIM_MULTIPLY_BYTES("u8", "s8");
  } else {
    SKIM_MULTIPLY_BYTES("u8", "u8");
  }
#undef SKIM_MULTIPLY_BYTES
}

// The integer next to x, ties to even, modulo 2^16; |x| is less than 2^22.
SKIM_DEVICE uint32_t RoundToInteger(float x) { return __float_as_uint(__fadd_rn(x, 12582912.0f)) & 0xffff; }

SKIM_DEVICE uint32_t FloatToBits(float value) { return __float_as_uint(value); }

// A vector of codes, which a launch reads once: it does not displace activations from the L1 cache.
SKIM_DEVICE uint4 LoadOnce(const uint4* from) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

SKIM_DEVICE uint2 LoadOnce(const uint2* from) {
  uint2 v;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}

SKIM_DEVICE uint32_t LoadOnce(const uint32_t* from) {
  uint32_t v;
  asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}

// What nothing writes while the kernel runs.
template <typename T>
SKIM_DEVICE T Load(const T* from) {
  return __ldg(from);
}

SKIM_DEVICE void AddAtomically(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

// Starts to copy 16 or 8 bytes to shared memory; both addresses are multiples of as many.
template <int kBytes = 16>
SKIM_DEVICE void CopyAsync(void* shared, const void* global) {
  static_assert(kBytes == 16 || kBytes == 8);
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {  // past the L1 cache, which is not allowed for fewer
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(global) : "memory");
  }
#else
  if constexpr (kBytes == 16) {
    *static_cast<uint4*>(shared) = __ldg(static_cast<const uint4*>(global));
  } else {
    *static_cast<uint2*>(shared) = __ldg(static_cast<const uint2*>(global));
  }
#endif
}

// Closes a group of copies.
SKIM_DEVICE void CommitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kPending` of this thread's groups are not done; a barrier must follow before others' are read.
template <int kPending>
SKIM_DEVICE void WaitForCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// The block's dynamic shared memory.
SKIM_DEVICE char* SharedMemory() {
  extern __shared__ uint4 shared[];
  return reinterpret_cast<char*>(shared);
}

// Launches kernel(arguments...) on a stream (cudaStream_t). Returns a cudaError_t.
template <typename... Parameters, typename... Arguments>
int Launch(void (*kernel)(Parameters...), int64_t blocks, unsigned threads, size_t shared_bytes, void* stream,
           const Arguments&... arguments) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  if (shared_bytes > kAlwaysAllowed) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
    // A wish: as many blocks as have room, at the cost of the L1 cache.
    cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace skim::cuda
