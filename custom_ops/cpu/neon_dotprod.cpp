// The NEON kernels for CPUs with the dot product instructions (Cortex-A76 and Apple M1, for example).
//
// This file is compiled for them as a whole. So nothing in it may have external linkage but `NeonDotprodKernels`.
#include "neon_integer.h"

namespace skim {
namespace {

SKIM_INLINE int32x4_t MultiplyDot(int32x4_t sums, int8x16_t row, int8x16_t digit) {
  return vdotq_s32(sums, row, digit);
}

using DotProducts = RowProducts<MultiplyDot, 3>;

}  // namespace

const Kernels& NeonDotprodKernels() {
  static const Kernels kernels{"neon-dotprod", NeonKernels().exact, kIntegerArithmetic<DotProducts>,
                               NeonKernels().swiglu, NeonKernels().gather};
  return kernels;
}

}  // namespace skim
