#include <cuda_runtime_api.h>

#include "skim/cuda.h"

namespace skim::cuda {

Gpu CurrentGpu() {
  int device, major, minor, multiprocessors;
  const bool found = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  if (found) return {10 * major + minor, multiprocessors};
  cudaGetLastError();  // or the next launch would report it
  return {};
}

}  // namespace skim::cuda
