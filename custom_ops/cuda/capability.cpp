#include <cuda_runtime_api.h>

#include "skim/cuda.h"

namespace skim::cuda {

int ComputeCapability() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    cudaGetLastError();  // or the next launch would report it
    return 0;
  }
  return 10 * major + minor;
}

}  // namespace skim::cuda
