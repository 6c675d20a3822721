// What kernels use of a GPU (custom_ops/cuda/gpu/device.cuh), for a C++ compiler: the same functions, and those words
// of CUDA that kernels need. Whatever a GPU would leave undefined aborts, or is poisoned, where that can be seen.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../cpu/half.h"
#include "grid.h"

#define SKIM_DEVICE inline

#define __global__
#define __launch_bounds__(...)
#define threadIdx ::skim::on_cpu::thread_index
#define blockIdx ::skim::on_cpu::block_index

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline void __syncthreads() { skim::on_cpu::MeetBlock(); }

inline void __syncwarp() {
  using namespace skim::on_cpu;
  MeetWarp(Barrier::kWarp, nullptr, [](void* const(&)[kWarp]) {});
}

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int lane_mask) {
  using namespace skim::on_cpu;
  if (lanes != ~0u) Abort("__shfl_xor_sync among lanes %#x: not all", lanes);
  struct Part {
    T value, received;
    unsigned partner;
  } mine{value, value, (threadIdx.x % kWarp) ^ static_cast<unsigned>(lane_mask)};
  if (mine.partner >= kWarp) Abort("__shfl_xor_sync with lane mask %d", lane_mask);
  MeetWarp(Barrier::kShuffle, &mine, [](void* const(&parts)[kWarp]) {
    for (void* part : parts) {
      Part& to = *static_cast<Part*>(part);
      to.received = static_cast<Part*>(parts[to.partner])->value;
    }
  });
  return mine.received;
}

inline float __expf(float x) { return std::exp(x); }

namespace skim::cuda {

constexpr bool kHasBfloat16 = true;
constexpr bool kHasWideBytes = true;

SKIM_DEVICE float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SKIM_DEVICE float BfloatToFloat(uint16_t bfloat) { return BitsToFloat(uint32_t{bfloat} << 16); }

SKIM_DEVICE uint32_t FloatsToBfloat2(float first, float second) {
  const auto bfloat = [](float value) -> uint32_t {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  };
  return bfloat(first) | bfloat(second) << 16;
}

SKIM_DEVICE float HalfToFloat(uint16_t half) { return skim::HalfToFloat(half); }

SKIM_DEVICE uint16_t FloatToHalf(float value) { return skim::FloatToHalf(value); }

SKIM_DEVICE uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  if (selector & 0x8888) on_cpu::Abort("Permute with selector %#x", selector);
  const uint64_t bytes = a | uint64_t{b} << 32;
  uint32_t permuted = 0;
  for (int i = 0; i < 4; ++i) permuted |= (bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return permuted;
}

template <typename Operation>
uint32_t ForHalf2(uint32_t a, uint32_t b, Operation operation) {
  const auto half = [&](int shift) -> uint32_t {
    const auto of = [&](uint32_t pair) { return HalfToFloat(static_cast<uint16_t>(pair >> shift)); };
    // In float32 a sum, a difference or a product of two halves is so exact that to round it once more does not matter.
    return FloatToHalf(operation(of(a), of(b)));
  };
  return half(0) | half(16) << 16;
}

SKIM_DEVICE uint32_t SubtractHalf2(uint32_t a, uint32_t b) {
  return ForHalf2(a, b, [](float x, float y) { return x - y; });
}

SKIM_DEVICE uint32_t MultiplyHalf2(uint32_t a, uint32_t b) {
  return ForHalf2(a, b, [](float x, float y) { return x * y; });
}

// Rounded to float32 before; kernels have exact sums only.
SKIM_DEVICE uint32_t FmaBfloat2(uint32_t a, uint32_t b, uint32_t c) {
  const auto fma = [&](int shift) {
    const auto of = [&](uint32_t pair) { return BfloatToFloat(static_cast<uint16_t>(pair >> shift)); };
    return std::fma(of(a), of(b), of(c));
  };
  return FloatsToBfloat2(fma(0), fma(16));
}

SKIM_DEVICE uint32_t FmaReluBfloat2(uint32_t a, uint32_t b, uint32_t c) {
  const uint32_t sum = FmaBfloat2(a, b, c);
  return (sum & 0x8000 ? 0 : sum & 0xffff) | (sum & 0x80000000 ? 0 : sum & 0xffff0000);
}

// The matrices of a `MultiplyAdd`, gathered from the lanes of a warp.
template <float (*kToFloat)(uint16_t)>
struct Fragments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;

  static float Element(const uint32_t* pairs, int i) {
    return kToFloat(static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16));
  }

  static void MultiplyAll(void* const (&lanes)[on_cpu::kWarp]) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& part = *static_cast<const Fragments*>(lanes[lane]);
      const int g = lane / 4, c = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int k = 2 * c + i % 2 + (i >= 4 ? 8 : 0);
        a[g + (i & 2 ? 8 : 0)][k] = Element(part.a, i);
        if (!(i & 2)) b[k][g] = Element(part.b, i / 4 * 2 + i % 2);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* d = static_cast<const Fragments*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) d[i] += a[row][k] * b[k][column];
      }
    }
  }
};

SKIM_DEVICE void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using OfHalves = Fragments<HalfToFloat>;
  OfHalves mine{d, a, b};
  on_cpu::MeetWarp(on_cpu::Barrier::kMultiplyAdd, &mine, OfHalves::MultiplyAll);
}

SKIM_DEVICE void MultiplyAddBfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using OfBfloats = Fragments<BfloatToFloat>;
  OfBfloats mine{d, a, b};
  on_cpu::MeetWarp(on_cpu::Barrier::kMultiplyAdd, &mine, OfBfloats::MultiplyAll);
}

// The matrices of a `MultiplyAddBytes`.
template <typename A, typename B>
struct ByteFragments {
  int32_t* d;
  const uint32_t* a;
  const uint32_t* b;

  static void MultiplyAll(void* const (&lanes)[on_cpu::kWarp]) {
    uint32_t a[16][32], b[32][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& part = *static_cast<const ByteFragments*>(lanes[lane]);
      const int g = lane / 4, c = lane % 4;
      for (int i = 0; i < 16; ++i) {
        const int k = 4 * c + i % 4 + (i >= 8 ? 16 : 0);
        a[g + (i & 4 ? 8 : 0)][k] = static_cast<uint32_t>(static_cast<A>(part.a[i / 4] >> i % 4 * 8));
        if (i < 8) b[4 * c + i % 4 + i / 4 * 16][g] = static_cast<uint32_t>(static_cast<B>(part.b[i / 4] >> i % 4 * 8));
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      int32_t* d = static_cast<const ByteFragments*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) {
        auto sum = static_cast<uint32_t>(d[i]);
        for (int k = 0; k < 32; ++k) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        d[i] = static_cast<int32_t>(sum);
      }
    }
  }
};

template <bool kSignedA, bool kSignedB>
SKIM_DEVICE void MultiplyAddBytes(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using OfBytes =
      ByteFragments<std::conditional_t<kSignedA, int8_t, uint8_t>, std::conditional_t<kSignedB, int8_t, uint8_t>>;
  OfBytes mine{d, a, b};
  on_cpu::MeetWarp(on_cpu::Barrier::kMultiplyAdd, &mine, OfBytes::MultiplyAll);
}

SKIM_DEVICE uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

SKIM_DEVICE uint32_t RoundToInteger(float x) { return FloatToBits(x + 12582912.0f) & 0xffff; }

template <typename Vector>
SKIM_DEVICE Vector LoadOnce(const Vector* from) {
  return *from;
}

template <typename T>
SKIM_DEVICE T Load(const T* from) {
  return *from;
}

SKIM_DEVICE void AddAtomically(uint64_t* to, uint64_t value) { *to += value; }

template <int kBytes = 16>
SKIM_DEVICE void CopyAsync(void* shared, const void* global) {
  on_cpu::StartCopy(shared, global, kBytes);
}

SKIM_DEVICE void CommitCopies() { on_cpu::CommitCopies(); }

template <int kPending>
SKIM_DEVICE void WaitForCopies() {
  on_cpu::WaitForCopies(kPending);
}

SKIM_DEVICE char* SharedMemory() { return on_cpu::SharedMemory(); }

template <typename... Parameters, typename... Arguments>
int Launch(void (*kernel)(Parameters...), int64_t blocks, unsigned threads, size_t shared_bytes, void*,
           const Arguments&... arguments) {
  return on_cpu::RunGrid(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace skim::cuda
