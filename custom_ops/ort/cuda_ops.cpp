// The operators for the CUDA execution provider. They enqueue kernels on the session's stream, and neither allocate nor
// wait when they run, so that a CUDA graph can capture them.
#include <stdexcept>

#include "cuda_weights.h"
#include "gather.h"
#include "product.h"
#include "read_memory.h"
#include "skim/cuda.h"

namespace skim {
namespace {

using Weights = std::shared_ptr<const DeviceWeights>;

void* ComputeStream(const OrtApi* api, const OrtKernelContext* context) {
  void* stream = nullptr;
  Call(abi::KernelContext_GetGPUComputeStream, api, context, &stream);
  return stream;
}

// The runtime's own memory is aligned; what a caller binds may not be.
void CheckAligned(const void* data, const char* name, const std::string& node) {
  if (reinterpret_cast<uintptr_t>(data) % cuda::kDeviceAlignment != 0) {
    throw InvalidArgument(node + ": " + name + " must begin at a multiple of " +
                          std::to_string(cuda::kDeviceAlignment) + " bytes");
  }
}

// Returns `type`. Throws std::runtime_error if the GPU has no such type.
FloatType CheckType(FloatType type, const std::string& node) {
  const int capability = cuda::CurrentGpu().capability;
  if (type == FloatType::kBfloat16 && capability < cuda::kAmpereCapability) {
    const auto text = [](int number) { return std::to_string(number / 10) + "." + std::to_string(number % 10); };
    throw std::runtime_error(node + ": bfloat16 needs a GPU of compute capability " + text(cuda::kAmpereCapability) +
                             " or newer, and this one has " + text(capability) + ": export the model with float16");
  }
  return type;
}

// A product with packed weights, and what becomes of it.
struct Step {
  Weights weights;
  cuda::Epilogue epilogue;
};

std::vector<Step> ReadSteps(LutMatMulOperator, const OrtApi* api, const OrtKernelInfo* info, const std::string& node) {
  return {{UploadWeights(api, info, node), cuda::Epilogue::kStore}};
}

std::vector<Step> ReadSteps(LutSwigluOperator, const OrtApi* api, const OrtKernelInfo* info, const std::string& node) {
  return {{UploadWeights(api, info, node, 1, "gate_"), cuda::Epilogue::kSilu},
          {UploadWeights(api, info, node, 1 + kWeightInputs, "up_"), cuda::Epilogue::kMultiply}};
}

template <typename Operator>
class CudaProduct {
 public:
  CudaProduct(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        node_(NodeText(api, info, Operator::kName)),
        type_(CheckType(static_cast<FloatType>(op.activation_type), node_)),
        integers_(AllowsIntegers(api, info, node_)),
        steps_(ReadSteps(Operator(), api, info, node_)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  void Compute(OrtKernelContext* context) const {
    const Layer& layer = steps_.front().weights->layer().layer;
    const Activations x = ReadActivations(api_, context, layer, node_);
    void* y = TensorData(api_, MakeOutput(api_, context, x.output_shape));
    if (x.M == 0) return;
    CheckAligned(x.data, "X", node_);
    CheckAligned(y, "Y", node_);
    void* stream = ComputeStream(api_, context);
    for (const Step& step : steps_) {
      cuda::DeviceLayer weights = step.weights->layer();  // which other nodes may have, too
      weights.integers = integers_;
      const int error = cuda::Matmul(weights, x.data, type_, x.M, step.epilogue, y, stream);
      CheckCuda(error, node_,
                "M=" + std::to_string(x.M) + ", N=" + std::to_string(layer.weights.N) +
                    ", K=" + std::to_string(layer.weights.K));
    }
  }

  const OrtApi* api_;
  std::string node_;
  FloatType type_;
  bool integers_;
  std::vector<Step> steps_;
};

class CudaGather {
 public:
  CudaGather(const Op&, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        node_(NodeText(api, info, kGatherName)),
        type_(CheckType(ReadOutputType(api, info, node_, /*bfloat16=*/true), node_)),
        weights_(UploadWeights(api, info, node_)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  void Compute(OrtKernelContext* context) const {
    const cuda::DeviceLayer& layer = weights_->layer();
    const int64_t K = layer.layer.weights.K;
    const Rows rows = ReadRows(api_, context, K, type_, node_);
    if (rows.count == 0) return;
    CheckAligned(rows.y, "Y", node_);
    const int error = cuda::Gather(layer, rows.ids, rows.count, rows.y, type_, ComputeStream(api_, context));
    CheckCuda(error, node_, std::to_string(rows.count) + " ids, K=" + std::to_string(K));
  }

  const OrtApi* api_;
  std::string node_;
  FloatType type_;
  Weights weights_;
};

// ai.skim.measure::ReadMemory; its attributes are about CPUs.
class CudaReadMemory {
 public:
  CudaReadMemory(const Op&, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api), node_(NodeText(api, info, kReadMemoryName)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] {
      const OrtValue* input = nullptr;
      Call(abi::KernelContext_GetInput, api_, context, size_t{0}, &input);
      const int64_t bytes = CountBytes(api_, input);
      const void* data = TensorData(api_, input);
      if (bytes > 0) CheckAligned(data, "data", node_);
      auto* sum = static_cast<uint64_t*>(TensorData(api_, MakeOutput(api_, context, {1})));
      const int error = cuda::SumWords(data, bytes, sum, ComputeStream(api_, context));
      CheckCuda(error, node_, std::to_string(bytes) + " bytes");
    });
  }

 private:
  const OrtApi* api_;
  std::string node_;
};

}  // namespace

void AddCudaOps(const OrtApi* api, std::list<Op>& ops) {
  constexpr const Kernels* kNotOnCpu = nullptr;
  AddProduct<LutMatMulOperator, CudaProduct<LutMatMulOperator>>(api, kNotOnCpu, ops);
  AddProduct<LutSwigluOperator, CudaProduct<LutSwigluOperator>>(api, kNotOnCpu, ops);
  AddGather<CudaGather>(api, kNotOnCpu, ops);
  AddReadMemory<CudaReadMemory>(api, kNotOnCpu, ops);
}

}  // namespace skim
