#include "gather.h"

namespace skim {

FloatType ReadOutputType(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, bool bfloat16) {
  int64_t dtype = 0;
  Call(abi::KernelInfoGetAttribute_int64, api, info, "dtype", &dtype);
  if (dtype != abi::kFloat32 && dtype != abi::kFloat16 && !(bfloat16 && dtype == abi::kBfloat16)) {
    throw InvalidArgument(node + ": dtype must be " +
                          (bfloat16 ? "1 (float32), 10 (float16) or 16 (bfloat16)" : "1 (float32) or 10 (float16)") +
                          ", got " + std::to_string(dtype));
  }
  return static_cast<FloatType>(dtype);
}

Rows ReadRows(const OrtApi* api, OrtKernelContext* context, int64_t K, FloatType type, const std::string& node) {
  const OrtValue* ids = nullptr;
  Call(abi::KernelContext_GetInput, api, context, size_t{0}, &ids);
  std::vector<int64_t> shape = GetTensorInfo(api, ids).shape;
  Rows rows{static_cast<const int64_t*>(TensorData(api, ids)), 1, nullptr};
  for (int64_t dimension : shape) rows.count *= dimension;
  shape.push_back(K);
  OrtValue* y = MakeOutput(api, context, shape);
  // They differ if the shape of ids is unknown, so that no type was inferred, and the model declares another one.
  if (GetTensorInfo(api, y).element_type != static_cast<int32_t>(type)) {
    throw InvalidArgument(node + ": the model declares another type for the output than dtype says");
  }
  rows.y = TensorData(api, y);
  return rows;
}

void DescribeGather(Op& op) {
  op.GetName = [](const OrtCustomOp*) { return kGatherName; };
  // The output's type follows from no input. A variadic output that is not homogeneous is the one kind whose type the
  // runtime leaves to the shape function.
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int32_t { return abi::kUndefined; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return abi::kVariadic; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    const OrtApi* api = static_cast<const Op*>(op)->api;
    return Guarded(api, [&] {
      const auto type = static_cast<int32_t>(InferenceAttribute(api, context, "dtype"));
      InferOutput(api, context, type, InferenceAttribute(api, context, "K"), /*replace_last=*/false);
    });
  };
}

}  // namespace skim
