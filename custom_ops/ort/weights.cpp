#include "weights.h"

#include "api.h"

namespace skim {
namespace {

const char* TypeText(int32_t type) {
  switch (type) {
    case abi::kFloat32:
      return "float32";
    case abi::kUint8:
      return "uint8";
    case abi::kInt8:
      return "int8";
    case abi::kFloat16:
      return "float16";
    default:
      return "another type";
  }
}

// One of the tensors 1..6; a view on it is taken with the type that it must have.
struct Input {
  const char* name;
  TensorInfo info;
  const void* data;

  template <typename T>
  Tensor<T> As(int32_t type) const {
    if (info.element_type != type) {
      throw InvalidArgument(std::string(name) + " must be " + TypeText(type) + ", got " + TypeText(info.element_type));
    }
    return {static_cast<const T*>(data), info.shape[0]};
  }
};

Input ReadInput(const OrtApi* api, const OrtKernelInfo* info, size_t index, const char* name) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Call(abi::KernelInfoGetConstantInput_tensor, api, info, index, &is_constant, &value);
  if (!is_constant || value == nullptr) throw InvalidArgument(std::string(name) + " must be an initializer");
  Input input{name, GetTensorInfo(api, value), TensorData(api, value)};
  if (input.info.shape.size() != 1) {
    throw InvalidArgument(std::string(name) + " must have one dimension, got shape " + ShapeText(input.info.shape));
  }
  return input;
}

int64_t ReadAttribute(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  if (OrtStatus* status = abi::KernelInfoGetAttribute_int64(api, info, name, &value)) {
    abi::ReleaseStatus(api, status);
    throw InvalidArgument(std::string("the integer attribute ") + name + " is missing");
  }
  return value;
}

void ReadRowsPerClass(const OrtApi* api, const OrtKernelInfo* info, int64_t* counts) {
  size_t size = kClasses;
  OrtStatus* status = abi::KernelInfoGetAttributeArray_int64(api, info, "rows_per_class", counts, &size);
  if (status != nullptr) abi::ReleaseStatus(api, status);
  if (status != nullptr || size != kClasses) {
    throw InvalidArgument("the attribute rows_per_class must be " + std::to_string(kClasses) + " integers");
  }
}

PackedLinear Read(const OrtApi* api, const OrtKernelInfo* info) {
  const int64_t version = ReadAttribute(api, info, "version");
  if (version != kFormatVersion) {
    throw InvalidArgument("version must be " + std::to_string(kFormatVersion) + ", got " + std::to_string(version) +
                          "; the model needs another version of this library");
  }
  PackedLinear weights{};
  weights.N = ReadAttribute(api, info, "N");
  weights.K = ReadAttribute(api, info, "K");
  ReadRowsPerClass(api, info, weights.rows_per_class);
  weights.codes = ReadInput(api, info, 1, "codes").As<uint8_t>(abi::kUint8);
  const Input codebook = ReadInput(api, info, 2, "codebook");
  const bool int8 = codebook.info.element_type == abi::kInt8;
  weights.codebook_type = int8 ? CodebookType::kInt8 : CodebookType::kFloat16;
  weights.codebook = codebook.As<void>(int8 ? abi::kInt8 : abi::kFloat16);
  weights.row_scale = ReadInput(api, info, 3, "row_scale").As<uint16_t>(abi::kFloat16);
  weights.row_class = ReadInput(api, info, 4, "row_class").As<uint8_t>(abi::kUint8);
  weights.column_scale = ReadInput(api, info, 5, "column_scale").As<uint16_t>(abi::kFloat16);
  weights.bias = ReadInput(api, info, 6, "bias").As<float>(abi::kFloat32);
  if (std::string message = weights.Validate(); !message.empty()) throw InvalidArgument(message);
  return weights;
}

}  // namespace

PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node) {
  try {
    return Read(api, info);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(node + ": " + error.what());
  }
}

std::string NodeText(const OrtApi* api, const OrtKernelInfo* info, const char* op) {
  size_t size = 0;
  Call(abi::KernelInfo_GetNodeName, api, info, nullptr, &size);
  std::string name(size, '\0');  // the size counts the terminating zero
  Call(abi::KernelInfo_GetNodeName, api, info, name.data(), &size);
  return std::string(op) + " node '" + name.c_str() + "'";
}

}  // namespace skim
