// Calls into one copy of ONNX Runtime: statuses become exceptions on the way in, exceptions statuses on the way out.
//
// onnxruntime and onnxruntime-genai can live in one process, each with a runtime of its own, so the `OrtApi*` is never
// global: a registration and each kernel keep the one that they were given.
#pragma once

#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "skim/ort_abi.h"

namespace skim {

// A status that the runtime returned, on its way back to the runtime.
struct RuntimeFailure {
  OrtStatus* status;
};

class InvalidArgument : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws RuntimeFailure if the call fails.
template <int kSlot, typename... Parameters, typename... Arguments>
void Call(const abi::Slot<kSlot, OrtStatus*(Parameters...)>& slot, const OrtApi* api, Arguments&&... arguments) {
  if (OrtStatus* status = slot(api, std::forward<Arguments>(arguments)...)) throw RuntimeFailure{status};
}

// Runs `body` behind the C ABI: no exception gets through.
template <typename Body>
OrtStatus* Guarded(const OrtApi* api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const RuntimeFailure& failure) {
    return failure.status;
  } catch (const InvalidArgument& error) {
    return abi::CreateStatus(api, abi::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return abi::CreateStatus(api, abi::kFail, error.what());
  }
}

// Element type and shape of a tensor.
struct TensorInfo {
  int32_t element_type;
  std::vector<int64_t> shape;
};

inline TensorInfo GetTensorInfo(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info;
  Call(abi::GetTensorTypeAndShape, api, value, &info);
  TensorInfo result{};
  OrtStatus* status = abi::GetTensorElementType(api, info, &result.element_type);
  size_t rank = 0;
  if (status == nullptr) status = abi::GetDimensionsCount(api, info, &rank);
  if (status == nullptr) {
    result.shape.resize(rank);
    status = abi::GetDimensions(api, info, result.shape.data(), rank);
  }
  abi::ReleaseTensorTypeAndShapeInfo(api, info);
  if (status != nullptr) throw RuntimeFailure{status};
  return result;
}

inline void* TensorData(const OrtApi* api, const OrtValue* value) {
  void* data;
  Call(abi::GetTensorMutableData, api, const_cast<OrtValue*>(value), &data);
  return data;
}

// Output 0 of a node, with memory for a tensor of this shape.
inline OrtValue* MakeOutput(const OrtApi* api, OrtKernelContext* context, const std::vector<int64_t>& shape) {
  OrtValue* output = nullptr;
  Call(abi::KernelContext_GetOutput, api, context, size_t{0}, shape.data(), shape.size(), &output);
  return output;
}

inline std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Runs body(0) .. body(count - 1) on the session's intra-op threads; a single one runs here.
template <typename Body>
void ParallelFor(const OrtApi* api, const OrtKernelContext* context, int64_t count, Body&& body) {
  if (count == 1) {
    body(int64_t{0});
    return;
  }
  struct Task {
    Body& body;
    std::atomic<bool> failed{false};
  } task{body};
  const auto run = [](void* data, size_t i) {
    Task& task = *static_cast<Task*>(data);
    try {
      task.body(static_cast<int64_t>(i));
    } catch (...) {  // only memory for scratch can be missing
      task.failed = true;
    }
  };
  Call(abi::KernelContext_ParallelFor, api, context, +run, static_cast<size_t>(count), size_t{0}, &task);
  if (task.failed) throw std::bad_alloc();
}

}  // namespace skim
