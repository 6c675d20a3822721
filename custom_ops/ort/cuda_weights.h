// Packed weights in the memory of a GPU.
#pragma once

#include <memory>
#include <string>

#include "skim/cuda.h"
#include "skim/ort_abi.h"

namespace skim {

// If `error`, a cudaError_t, is not 0, throws std::runtime_error: "NODE: CUDA: its message (DETAILS)".
void CheckCuda(int error, const std::string& node, const std::string& details);

struct CudaFree {
  void operator()(void* memory) const;
};

// A packed linear in memory of its own on a GPU.
class DeviceWeights {
 public:
  // Copies valid weights from the host to the current device. Throws like CheckCuda; where there is no memory for them,
  // the message names `tensor`, how much they take, and how much there is.
  DeviceWeights(const PackedLinear& weights, const std::string& node, const std::string& tensor);

  const cuda::DeviceLayer& layer() const { return layer_; }

  // Whether these are the same weights. Throws like CheckCuda.
  bool Equal(const PackedLinear& weights, const std::string& node) const;

 private:
  std::unique_ptr<void, CudaFree> memory_;
  cuda::DeviceLayer layer_;
};

// The weights that ReadWeights reads, on the current device. Nodes with the same initializers, such as embedding and
// head where they are tied, share one copy.
std::shared_ptr<const DeviceWeights> UploadWeights(const OrtApi* api, const OrtKernelInfo* info,
                                                   const std::string& node, size_t first = 1,
                                                   const std::string& prefix = "");

}  // namespace skim
