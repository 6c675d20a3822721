// The NEON kernels for CPUs with the instructions for matrices of int8 (Neoverse V1 and Apple M2, for example).
//
// One of them multiplies 8 columns of two rows with both digits of a token: a pair is the first 8 columns of one and of
// the other, then the last 8.
//
// This file is compiled for them as a whole. So nothing in it may have external linkage but `NeonI8mmKernels`.
#include "neon_integer.h"

namespace skim {
namespace {

struct MatrixProducts {
  static constexpr int kTokens = 4;

  static SKIM_INLINE int8x16x2_t Pair(int8x16_t a, int8x16_t b) {
    const int64x2_t c = vreinterpretq_s64_s8(a), d = vreinterpretq_s64_s8(b);
    return {{vreinterpretq_s8_s64(vzip1q_s64(c, d)), vreinterpretq_s8_s64(vzip2q_s64(c, d))}};
  }
  static SKIM_INLINE void StoreRow(int8_t* pair, int64_t row, int8x16_t levels) {
    vst1_s8(pair + 8 * row, vget_low_s8(levels));
    vst1_s8(pair + 16 + 8 * row, vget_high_s8(levels));
  }

  template <int kRows>
  struct Sums {
    int32x4_t sums = {};

    SKIM_INLINE void Add(int8x16x2_t rows, int8x16x2_t digits) {
      sums = vmmlaq_s32(sums, rows.val[0], digits.val[0]);
      sums = vmmlaq_s32(sums, rows.val[1], digits.val[1]);
    }
    SKIM_INLINE int32x4_t Total() const { return sums; }
  };
};

}  // namespace

const Kernels& NeonI8mmKernels() {
  static const Kernels kernels{"neon-i8mm", NeonKernels().exact, kIntegerArithmetic<MatrixProducts>,
                               NeonKernels().swiglu, NeonKernels().gather};
  return kernels;
}

}  // namespace skim
