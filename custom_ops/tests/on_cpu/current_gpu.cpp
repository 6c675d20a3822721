#include "grid.h"
#include "skim/cuda.h"

namespace skim::cuda {

Gpu CurrentGpu() {
  const auto shared_bytes = static_cast<int>(on_cpu::SharedBytes());
  return {on_cpu::Capability(), on_cpu::kMultiprocessors, shared_bytes, shared_bytes};
}

}  // namespace skim::cuda
