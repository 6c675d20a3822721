#include "weights.h"

namespace skim {
namespace {

struct ElementType {
  const char* name;
  int64_t bytes;
};

ElementType DescribeType(int32_t type) {
  switch (type) {
    case abi::kFloat32:
      return {"float32", 4};
    case abi::kUint8:
      return {"uint8", 1};
    case abi::kInt8:
      return {"int8", 1};
    case abi::kFloat16:
      return {"float16", 2};
    default:
      return {"another type", 0};
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
      throw InvalidArgument(name + " must be " + DescribeType(type).name + ", got " +
                            DescribeType(info.element_type).name);
    }
    return {static_cast<const T*>(data), info.shape[0]};
  }
};

Input ReadInput(const OrtApi* api, const OrtKernelInfo* info, size_t index, const std::string& name,
                const ToHost& to_host) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Call(abi::KernelInfoGetConstantInput_tensor, api, info, index, &is_constant, &value);
  if (!is_constant || value == nullptr) throw InvalidArgument(name + " must be an initializer");
  Input input{name, GetTensorInfo(api, value), TensorData(api, value)};
  if (input.info.shape.size() != 1) {
    throw InvalidArgument(name + " must have one dimension, got shape " + ShapeText(input.info.shape));
  }
  if (to_host) input.data = to_host(input.data, input.info.shape[0] * DescribeType(input.info.element_type).bytes);
  return input;
}

void ReadRowsPerClass(const OrtApi* api, const OrtKernelInfo* info, const std::string& name, size_t classes,
                      int64_t* counts) {
  size_t size = classes;
  OrtStatus* status = abi::KernelInfoGetAttributeArray_int64(api, info, name.c_str(), counts, &size);
  if (status != nullptr) abi::ReleaseStatus(api, status);
  if (status != nullptr || size != classes) {
    throw InvalidArgument("the attribute " + name + " must be " + std::to_string(classes) + " integers");
  }
}

PackedLinear Read(const OrtApi* api, const OrtKernelInfo* info, Shape shape, size_t first, const std::string& prefix,
                  const ToHost& to_host) {
  const auto input = [&](size_t index, const char* name) {
    return ReadInput(api, info, first + index, prefix + name, to_host);
  };
  const int64_t version = ReadAttribute(api, info, "version");
  if (version < 1 || version > kFormatVersion) {
    throw InvalidArgument("version must be 1.." + std::to_string(kFormatVersion) + ", got " + std::to_string(version) +
                          "; the model needs another version of this library");
  }
  PackedLinear weights{};
  weights.N = shape.N;
  weights.K = shape.K;
  ReadRowsPerClass(api, info, prefix + "rows_per_class", version == 1 ? kPlainClasses : kClasses,
                   weights.rows_per_class);
  weights.codes = input(0, "codes").As<uint8_t>(abi::kUint8);
  const Input codebook = input(1, "codebook");
  const bool int8 = codebook.info.element_type == abi::kInt8;
  weights.codebook_type = int8 ? CodebookType::kInt8 : CodebookType::kFloat16;
  weights.codebook = codebook.As<void>(int8 ? abi::kInt8 : abi::kFloat16);
  weights.row_scale = input(2, "row_scale").As<uint16_t>(abi::kFloat16);
  weights.row_class = input(3, "row_class").As<uint8_t>(abi::kUint8);
  weights.column_scale = input(4, "column_scale").As<uint16_t>(abi::kFloat16);
  weights.bias = input(5, "bias").As<float>(abi::kFloat32);
  if (std::string message = weights.Validate(); !message.empty()) throw InvalidArgument(prefix + message);
  return weights;
}

// What read(text, size) writes to `text`, or tells the size of if that is null.
template <typename Read>
std::string ReadText(Read&& read) {
  size_t size = 0;
  read(nullptr, &size);
  std::string text(size, '\0');  // the size counts the terminating zero
  read(text.data(), &size);
  return text.c_str();
}

}  // namespace

int64_t ReadAttribute(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  if (OrtStatus* status = abi::KernelInfoGetAttribute_int64(api, info, name, &value)) {
    abi::ReleaseStatus(api, status);
    throw InvalidArgument(std::string("the integer attribute ") + name + " is missing");
  }
  return value;
}

PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, Shape shape,
                         size_t first, const std::string& prefix, const ToHost& to_host) {
  return Named(node, [&] { return Read(api, info, shape, first, prefix, to_host); });
}

PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, size_t first,
                         const std::string& prefix, const ToHost& to_host) {
  const Shape shape = Named(node, [&] { return Shape{ReadAttribute(api, info, "N"), ReadAttribute(api, info, "K")}; });
  return ReadWeights(api, info, node, shape, first, prefix, to_host);
}

std::string NodeText(const OrtApi* api, const OrtKernelInfo* info, const char* op) {
  const std::string name =
      ReadText([&](char* text, size_t* size) { Call(abi::KernelInfo_GetNodeName, api, info, text, size); });
  return std::string(op) + " node '" + name + "'";
}

std::string InputName(const OrtApi* api, const OrtKernelInfo* info, size_t index) {
  return ReadText([&](char* text, size_t* size) { Call(abi::KernelInfo_GetInputName, api, info, index, text, size); });
}

}  // namespace skim
