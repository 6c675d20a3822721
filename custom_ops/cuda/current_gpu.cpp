#include <cuda_runtime_api.h>

#include "skim/cuda.h"

namespace skim::cuda {

Gpu CurrentGpu() {
  int device, major, minor;
  Gpu gpu{};
  const auto ask = [&](cudaDeviceAttr attribute, int& value) {
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  };
  const bool found = cudaGetDevice(&device) == cudaSuccess && ask(cudaDevAttrComputeCapabilityMajor, major) &&
                     ask(cudaDevAttrComputeCapabilityMinor, minor) &&
                     ask(cudaDevAttrMultiProcessorCount, gpu.multiprocessors) &&
                     ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor, gpu.shared_bytes) &&
                     ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu.block_shared_bytes);
  if (found) {
    gpu.capability = 10 * major + minor;
    return gpu;
  }
  cudaGetLastError();  // or the next launch would report it
  return {};
}

}  // namespace skim::cuda
