#include "product.h"

namespace skim {
namespace {

constexpr int64_t kInt8Accuracy = 4;  // the accuracy level of MatMulNBits that allows for integer arithmetic

}  // namespace

bool AllowsIntegers(const OrtApi* api, const OrtKernelInfo* info, const std::string& node) {
  int64_t level = 0;
  if (OrtStatus* status = abi::KernelInfoGetAttribute_int64(api, info, "accuracy_level", &level)) {
    abi::ReleaseStatus(api, status);
    level = 0;
  }
  if (level < 0 || level > kInt8Accuracy) {
    throw InvalidArgument(node + ": accuracy_level must be 0.." + std::to_string(kInt8Accuracy) + ", got " +
                          std::to_string(level));
  }
  return level == kInt8Accuracy;
}

const Arithmetic& ChooseArithmetic(const Kernels& kernels, const PackedLinear& weights, const OrtApi* api,
                                   const OrtKernelInfo* info, const std::string& node) {
  return AllowsIntegers(api, info, node) && FitsInteger(weights) ? kernels.integer : kernels.exact;
}

Activations ReadActivations(const OrtApi* api, const OrtKernelContext* context, const Layer& layer,
                            const std::string& node) {
  const OrtValue* x = nullptr;
  Call(abi::KernelContext_GetInput, api, context, size_t{0}, &x);
  std::vector<int64_t> shape = GetTensorInfo(api, x).shape;
  if (shape.empty() || shape.back() != layer.weights.K) {
    throw InvalidArgument(node + ": the last dimension of X must be K=" + std::to_string(layer.weights.K) +
                          ", got shape " + ShapeText(shape));
  }
  shape.back() = layer.weights.N;
  int64_t M = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) M *= shape[i];
  return {static_cast<const char*>(TensorData(api, x)), M, std::move(shape)};
}

OrtStatus* InferProduct(const OrtCustomOp* op, OrtShapeInferContext* context, const char* columns) {
  const OrtApi* api = static_cast<const Op*>(op)->api;
  return Guarded(api, [&] {
    OrtTensorTypeAndShapeInfo* x = nullptr;  // owned by the context
    int32_t type = 0;
    Call(abi::ShapeInferContext_GetInputTypeShape, api, context, size_t{0}, &x);
    Call(abi::GetTensorElementType, api, x, &type);
    InferOutput(api, context, type, InferenceAttribute(api, context, columns), /*replace_last=*/true);
  });
}

void DescribeProduct(Op& op) {
  op.GetOutputType = [](const OrtCustomOp* op, size_t) { return static_cast<const Op*>(op)->activation_type; };
  op.InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    return InferProduct(op, context, "N");
  };
}

}  // namespace skim
