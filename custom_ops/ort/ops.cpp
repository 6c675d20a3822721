#include "ops.h"

#include <cstring>

#include "api.h"
#include "weights.h"

namespace skim {
namespace {

const Op& AsOp(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

}  // namespace

int32_t InputType(const OrtCustomOp* op, size_t index) {
  if (index < AsOp(op).first_weight) return AsOp(op).activation_type;
  switch ((index - AsOp(op).first_weight) % kWeightInputs) {
    case 0:  // codes
    case 3:  // row_class
      return abi::kUint8;
    case 1:
      return AsOp(op).codebook_type;
    case 2:  // row_scale
    case 4:  // column_scale
      return abi::kFloat16;
    default:  // bias
      return abi::kFloat32;
  }
}

Op MakeOp(const OrtApi* api, const Kernels* kernels, int32_t activation_type, int32_t codebook_type) {
  Op op{};
  op.version = abi::kApiVersion;
  op.domain = "ai.skim";
  op.api = api;
  op.kernels = kernels;
  op.activation_type = activation_type;
  op.codebook_type = codebook_type;
  op.first_weight = 1;
  op.GetExecutionProviderType = [](const OrtCustomOp* op) -> const char* {
    return AsOp(op).kernels != nullptr ? nullptr : "CUDAExecutionProvider";
  };
  op.GetInputType = InputType;
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1 + kWeightInputs; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return abi::kRequired; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return abi::kRequired; };
  // The runtime keeps an initializer where the first node that reads it wants it (PlannerImpl::GeneratePlanForWeights),
  // and copies one that is wanted on both sides, so these stay on the CPU, external ones as pages of their file.
  op.GetInputMemoryType = [](const OrtCustomOp* op, size_t index) {
    return index < AsOp(op).first_weight ? abi::kProviderMemory : abi::kCpuMemory;
  };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  return op;
}

int64_t InferenceAttribute(const OrtApi* api, const OrtShapeInferContext* context, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = 0;
  size_t written = 0;
  Call(abi::ShapeInferContext_GetAttribute, api, context, name, &attribute);
  Call(abi::ReadOpAttr, api, attribute, abi::kAttributeInt, &value, sizeof value, &written);
  return value;
}

void InferOutput(const OrtApi* api, OrtShapeInferContext* context, int32_t type, int64_t last, bool replace_last) {
  OrtTensorTypeAndShapeInfo* input = nullptr;  // owned by the context
  Call(abi::ShapeInferContext_GetInputTypeShape, api, context, size_t{0}, &input);
  size_t rank = 0;
  Call(abi::GetDimensionsCount, api, input, &rank);
  if (rank == 0) return;  // a scalar and an unknown rank look the same here
  std::vector<int64_t> shape(rank);
  std::vector<const char*> names(rank);
  Call(abi::GetDimensions, api, input, shape.data(), rank);
  Call(abi::GetSymbolicDimensions, api, input, names.data(), rank);
  for (size_t i = 0; i < rank - replace_last; ++i) {
    // The runtime would write an unnamed unknown dimension out as -1.
    if (shape[i] < 0 && (names[i] == nullptr || *names[i] == '\0')) return;
  }
  if (replace_last) {
    shape.back() = last;
    names.back() = "";
  } else {
    shape.push_back(last);
    names.push_back("");
  }
  OrtTensorTypeAndShapeInfo* output = nullptr;
  Call(abi::CreateTensorTypeAndShapeInfo, api, &output);
  OrtStatus* status = abi::SetTensorElementType(api, output, type);
  if (status == nullptr) status = abi::SetDimensions(api, output, shape.data(), shape.size());
  if (status == nullptr) status = abi::SetSymbolicDimensions(api, output, names.data(), names.size());
  if (status == nullptr) status = abi::ShapeInferContext_SetOutputTypeShape(api, context, size_t{0}, output);
  abi::ReleaseTensorTypeAndShapeInfo(api, output);
  if (status != nullptr) throw RuntimeFailure{status};
}

}  // namespace skim
