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
  std::string name;
  TensorInfo info;
  const void* data;

  template <typename T>
  Tensor<T> As(int32_t type) const {
    if (info.element_type != type) {
      throw InvalidArgument(name + " must be " + TypeText(type) + ", got " + TypeText(info.element_type));
    }
    return {static_cast<const T*>(data), info.shape[0]};
  }
};

Input ReadInput(const OrtApi* api, const OrtKernelInfo* info, size_t index, const std::string& name) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Call(abi::KernelInfoGetConstantInput_tensor, api, info, index, &is_constant, &value);
  if (!is_constant || value == nullptr) throw InvalidArgument(name + " must be an initializer");
  Input input{name, GetTensorInfo(api, value), TensorData(api, value)};
  if (input.info.shape.size() != 1) {
    throw InvalidArgument(name + " must have one dimension, got shape " + ShapeText(input.info.shape));
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

void ReadRowsPerClass(const OrtApi* api, const OrtKernelInfo* info, const std::string& name, int64_t* counts) {
  size_t size = kClasses;
  OrtStatus* status = abi::KernelInfoGetAttributeArray_int64(api, info, name.c_str(), counts, &size);
  if (status != nullptr) abi::ReleaseStatus(api, status);
  if (status != nullptr || size != kClasses) {
    throw InvalidArgument("the attribute " + name + " must be " + std::to_string(kClasses) + " integers");
  }
}

PackedLinear Read(const OrtApi* api, const OrtKernelInfo* info, size_t first, const std::string& prefix) {
  const int64_t version = ReadAttribute(api, info, "version");
  if (version != kFormatVersion) {
    throw InvalidArgument("version must be " + std::to_string(kFormatVersion) + ", got " + std::to_string(version) +
                          "; the model needs another version of this library");
  }
  PackedLinear weights{};
  weights.N = ReadAttribute(api, info, "N");
  weights.K = ReadAttribute(api, info, "K");
  ReadRowsPerClass(api, info, prefix + "rows_per_class", weights.rows_per_class);
  weights.codes = ReadInput(api, info, first, prefix + "codes").As<uint8_t>(abi::kUint8);
  const Input codebook = ReadInput(api, info, first + 1, prefix + "codebook");
  const bool int8 = codebook.info.element_type == abi::kInt8;
  weights.codebook_type = int8 ? CodebookType::kInt8 : CodebookType::kFloat16;
  weights.codebook = codebook.As<void>(int8 ? abi::kInt8 : abi::kFloat16);
  weights.row_scale = ReadInput(api, info, first + 2, prefix + "row_scale").As<uint16_t>(abi::kFloat16);
  weights.row_class = ReadInput(api, info, first + 3, prefix + "row_class").As<uint8_t>(abi::kUint8);
  weights.column_scale = ReadInput(api, info, first + 4, prefix + "column_scale").As<uint16_t>(abi::kFloat16);
  weights.bias = ReadInput(api, info, first + 5, prefix + "bias").As<float>(abi::kFloat32);
  if (std::string message = weights.Validate(); !message.empty()) throw InvalidArgument(prefix + message);
  return weights;
}

}  // namespace

PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, size_t first,
                         const std::string& prefix) {
  try {
    return Read(api, info, first, prefix);
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
