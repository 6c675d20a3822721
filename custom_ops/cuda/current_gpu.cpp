#include <cuda_runtime_api.h>

#include <vector>

#include "skim/cuda.h"

namespace skim::cuda {
namespace {

Gpu Describe(int device) {
  int major, minor;
  Gpu gpu{};
  const auto ask = [&](cudaDeviceAttr attribute, int& value) {
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  };
  const bool found = ask(cudaDevAttrComputeCapabilityMajor, major) && ask(cudaDevAttrComputeCapabilityMinor, minor) &&
                     ask(cudaDevAttrMultiProcessorCount, gpu.multiprocessors) &&
                     ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor, gpu.shared_bytes) &&
                     ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu.block_shared_bytes);
  if (!found) return {};
  gpu.capability = 10 * major + minor;
  return gpu;
}

std::vector<Gpu> DescribeAll() {
  int count = 0;
  std::vector<Gpu> gpus;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int device = 0; device < count; ++device) gpus.push_back(Describe(device));
  return gpus;
}

}  // namespace

Gpu CurrentGpu() {
  // Asked once: every launch needs it.
  static const std::vector<Gpu> gpus = DescribeAll();
  int device = 0;
  if (!gpus.empty() && cudaGetDevice(&device) == cudaSuccess) return gpus[device];
  cudaGetLastError();  // or the next launch would report it
  return {};
}

}  // namespace skim::cuda
