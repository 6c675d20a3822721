// The yardstick of measurements, ai.skim.measure::ReadMemory: what it has in common wherever it runs.
#pragma once

#include "api.h"
#include "ops.h"

namespace skim {

constexpr const char* kReadMemoryName = "ReadMemory";

// Bytes of a tensor of uint8.
inline int64_t CountBytes(const OrtApi* api, const OrtValue* value) {
  int64_t bytes = 1;
  for (int64_t dimension : GetTensorInfo(api, value).shape) bytes *= dimension;
  return bytes;
}

// Fills in the domain, the name, inputs and outputs.
void DescribeReadMemory(Op& op);

// Appends the operator that a kernel class (see `SetKernel`) implements.
template <typename Kernel>
void AddReadMemory(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  Op op = MakeOp(api, kernels, abi::kUint8, abi::kUndefined);
  DescribeReadMemory(op);
  SetKernel<Kernel>(op);
  ops.push_back(op);
}

}  // namespace skim
