// The 16-bit types that tensor cores multiply: what levels and activations need to know of each. Two elements lie in a
// register, the first one in its low bits.
#pragma once

#include <device.cuh>
#include <type_traits>

namespace skim::cuda {

using Half = uint16_t;  // float16

struct Bfloat16 {
  uint16_t bits;
};

// Whether the GPU that is compiled for has a type; kernels must be empty where it has not.
template <typename Float>
constexpr bool kIsSupported = kHasBfloat16 || !std::is_same_v<Float, Bfloat16>;

// For both types:
//   kOnes: 1 twice.
//   Centered<kBits>(bytes, selector): two of the bytes, which are below 2^kBits, less 2^(kBits - 1). The selector is
//     Permute's, and has 4 for what comes beside each of them.
//   CenteredBytes(two): two bytes, each beside zeros, less 128.
//   FromHalves(two): two halves, rounded.
//   Scaled(two, scale): times two halves.
//   Sum(two): of both.
//   MultiplyAdd(d, a, b): see device.cuh.
template <typename Element>
struct ElementPair;

// The lowest bits of a half of 1024 to 2047 count ones, so there is one for 1024 + each byte.
template <>
struct ElementPair<Half> {
  static constexpr uint32_t kOnes = 0x3c003c00;

  template <int kBits>
  static SKIM_DEVICE uint32_t Centered(uint32_t bytes, uint32_t selector) {
    return SubtractHalf2(Permute(bytes, k1024 >> 8 | k1024, selector), k1024 + (0x10001 << (kBits - 1)));
  }

  static SKIM_DEVICE uint32_t CenteredBytes(uint32_t two) { return SubtractHalf2(two | k1024, k1024 + 0x800080); }

  static SKIM_DEVICE uint32_t FromHalves(uint32_t two) { return two; }

  static SKIM_DEVICE uint32_t Scaled(uint32_t two, uint32_t scale) { return MultiplyHalf2(two, scale); }

  static SKIM_DEVICE float Sum(uint32_t two) {
    return HalfToFloat(static_cast<Half>(two)) + HalfToFloat(static_cast<Half>(two >> 16));
  }

  static SKIM_DEVICE void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cuda::MultiplyAdd(d, a, b);
  }

 private:
  static constexpr uint32_t k1024 = 0x64006400;
};

// Here the lowest seven bits count ones, of 128 to 255. With the eighth bit they count twos, of 256 to 510.
template <>
struct ElementPair<Bfloat16> {
  static constexpr uint32_t kOnes = 0x3f803f80;

  template <int kBits>
  static SKIM_DEVICE uint32_t Centered(uint32_t bytes, uint32_t selector) {
    const uint32_t two = Permute(bytes, k128 >> 8 | k128, selector);
    if constexpr (kBits == 8) return Less256(two);
    return FmaBfloat2(two, kOnes, kSigns | (k128 + (0x10001 << (kBits - 1))));
  }

  static SKIM_DEVICE uint32_t CenteredBytes(uint32_t two) { return Less256(two | k128); }

  static SKIM_DEVICE uint32_t FromHalves(uint32_t two) {
    return FloatsToBfloat2(HalfToFloat(static_cast<Half>(two)), HalfToFloat(static_cast<Half>(two >> 16)));
  }

  static SKIM_DEVICE uint32_t Scaled(uint32_t two, uint32_t scale) {
    return FloatsToBfloat2(BitsToFloat(two << 16) * HalfToFloat(static_cast<Half>(scale)),
                           BitsToFloat(two & 0xffff0000) * HalfToFloat(static_cast<Half>(scale >> 16)));
  }

  static SKIM_DEVICE float Sum(uint32_t two) { return BitsToFloat(two << 16) + BitsToFloat(two & 0xffff0000); }

  static SKIM_DEVICE void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MultiplyAddBfloat16(d, a, b);
  }

 private:
  // Less 256; what is positive then is half of it, as it had the eighth bit.
  static SKIM_DEVICE uint32_t Less256(uint32_t two) {
    constexpr uint32_t kMinus256 = 0xc380c380, kMinusHalf = 0xbf00bf00;
    const uint32_t difference = FmaBfloat2(two, kOnes, kMinus256), positive = FmaReluBfloat2(two, kOnes, kMinus256);
    return FmaBfloat2(positive, kMinusHalf, difference);
  }

  static constexpr uint32_t k128 = 0x43004300, kSigns = 0x80008000;
};

SKIM_DEVICE float ToFloat(Half value) { return HalfToFloat(value); }
SKIM_DEVICE float ToFloat(Bfloat16 value) { return BitsToFloat(uint32_t{value.bits} << 16); }
SKIM_DEVICE float LoadFloat(const float* from) { return Load(from); }
SKIM_DEVICE float LoadFloat(const Half* from) { return HalfToFloat(Load(from)); }
SKIM_DEVICE float LoadFloat(const Bfloat16* from) { return BitsToFloat(uint32_t{Load(&from->bits)} << 16); }
SKIM_DEVICE void StoreFloat(float* to, float value) { *to = value; }
SKIM_DEVICE void StoreFloat(Half* to, float value) { *to = FloatToHalf(value); }
SKIM_DEVICE void StoreFloat(Bfloat16* to, float value) { to->bits = static_cast<uint16_t>(FloatsToBfloat2(value, 0)); }
SKIM_DEVICE float ReadBack(const float* from) { return *from; }
SKIM_DEVICE float ReadBack(const Half* from) { return HalfToFloat(*from); }
SKIM_DEVICE float ReadBack(const Bfloat16* from) { return BitsToFloat(uint32_t{from->bits} << 16); }

}  // namespace skim::cuda
