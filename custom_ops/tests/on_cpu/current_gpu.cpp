#include "grid.h"
#include "skim/cuda.h"

namespace skim::cuda {

Gpu CurrentGpu() { return {on_cpu::Capability(), on_cpu::kMultiprocessors}; }

}  // namespace skim::cuda
