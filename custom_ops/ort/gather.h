// Rows of packed weights, as LutGather has them: what it reads of a node, and its output.
#pragma once

#include <string>

#include "api.h"
#include "ops.h"
#include "skim/kernels.h"

namespace skim {

constexpr const char* kGatherName = "LutGather";

// The attribute dtype, the type of the output. Throws InvalidArgument if it is none that there is; `bfloat16`: whether
// that is one.
FloatType ReadOutputType(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, bool bfloat16);

// The rows that are asked for, and the tensor that they go to.
struct Rows {
  const int64_t* ids;
  int64_t count;
  void* y;  // [count, K]
};

// Input 0 of a node, and output 0 with memory. Throws InvalidArgument if the model declares another type for it.
Rows ReadRows(const OrtApi* api, OrtKernelContext* context, int64_t K, FloatType type, const std::string& node);

// Fills in the name, and the type and the shape of the output.
void DescribeGather(Op& op);

// Appends the operator that a kernel class (see `SetKernel`) implements, for all combinations of types.
template <typename Kernel>
void AddGather(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  for (int32_t codebook : {abi::kInt8, abi::kFloat16}) {
    Op op = MakeOp(api, kernels, abi::kInt64, codebook);
    DescribeGather(op);
    SetKernel<Kernel>(op);
    ops.push_back(op);
  }
}

}  // namespace skim
