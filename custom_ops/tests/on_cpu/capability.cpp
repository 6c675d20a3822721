// The environment variable SKIM_FAKE_GPU_CAPABILITY is the compute capability, 80 by default. The kernels are those of
// 80 all the same.
#include <cstdlib>

#include "skim/cuda.h"

namespace skim::cuda {

int ComputeCapability() {
  const char* capability = std::getenv("SKIM_FAKE_GPU_CAPABILITY");
  return capability == nullptr ? 80 : std::atoi(capability);
}

}  // namespace skim::cuda
