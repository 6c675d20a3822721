// Products with packed weights, as LutMatMul and LutSwiglu have them: what they read of a node, and how work is cut.
#pragma once

#include <algorithm>
#include <string>

#include "api.h"
#include "ops.h"
#include "skim/kernels.h"
#include "weights.h"

namespace skim {

// The operators with an input X, whatever runs them; `kLayers` packed linears follow it.
struct LutMatMulOperator {
  static constexpr const char* kName = "LutMatMul";
  static constexpr size_t kLayers = 1;
};
struct LutSwigluOperator {
  static constexpr const char* kName = "LutSwiglu";
  static constexpr size_t kLayers = 2;
};

// Tokens for which weights are decoded once: bounds the scratch memory, and 256 make decoding cheap.
constexpr int64_t kTokenBlock = 256;

static inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tokens that one task prepares.
constexpr int64_t kTaskTokens = 8;

// Whether the attribute accuracy_level, which may be missing, allows for integers. It means what it means for
// MatMulNBits.
bool AllowsIntegers(const OrtApi* api, const OrtKernelInfo* info, const std::string& node);

// The arithmetic for a layer by that attribute.
const Arithmetic& ChooseArithmetic(const Kernels& kernels, const PackedLinear& weights, const OrtApi* api,
                                   const OrtKernelInfo* info, const std::string& node);

// The activations of a product: the input X of a node, and the shape of an output of N columns.
struct Activations {
  const char* data;
  int64_t M;
  std::vector<int64_t> output_shape;
};

// Input 0 of a node, whose last dimension must be K. Throws InvalidArgument otherwise.
Activations ReadActivations(const OrtApi* api, const OrtKernelContext* context, const Layer& layer,
                            const std::string& node);

// Calls body(first token, tokens) on the session's threads for all tokens, a few at a time.
template <typename Body>
void EachTokens(const OrtApi* api, const OrtKernelContext* context, int64_t tokens, Body&& body) {
  ParallelFor(api, context, CeilDiv(tokens, kTaskTokens), [&](int64_t task) {
    const int64_t first = task * kTaskTokens;
    body(first, std::min(tokens - first, kTaskTokens));
  });
}

// How the rows of a layer are cut into tasks: so many bytes of weights for one token, fewer for several, and a multiple
// of so many rows that the tiles of all kernels are in one task. Neither depends on the number of threads.
class RowTasks {
 public:
  RowTasks(const Layer& layer, int64_t tokens) : N_(layer.weights.N) {
    const int64_t row_bytes = CeilDiv(layer.weights.codes.size, N_);
    rows_ = CeilDiv(std::max<int64_t>(kBytes / (row_bytes * tokens), 1), kRows) * kRows;
  }

  int64_t count() const { return CeilDiv(N_, rows_); }
  int64_t begin(int64_t task) const { return task * rows_; }
  int64_t end(int64_t task) const { return std::min(N_, (task + 1) * rows_); }

 private:
  static constexpr int64_t kBytes = 8 * 1024;
  static constexpr int64_t kRows = 48;
  int64_t N_, rows_;
};

// Infers type and shape of an output that has the type and shape of X, with the attribute `columns` for its last
// dimension. The schema is common to all types, so the runtime asks an operator of any of them.
OrtStatus* InferProduct(const OrtCustomOp* op, OrtShapeInferContext* context, const char* columns);

// Fills in what operators with an input X share: the type of their output, and its shape, that of X with N columns.
void DescribeProduct(Op& op);

// Appends an operator with an input X that a kernel class (see `SetKernel`) implements, for all combinations of types.
// `kernels`: of the CPU, which have no bfloat16; null for a GPU.
template <typename Operator, typename Kernel>
void AddProduct(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  for (int32_t type : {abi::kFloat32, abi::kFloat16, abi::kBfloat16}) {
    if (type == abi::kBfloat16 && kernels != nullptr) continue;
    for (int32_t codebook : {abi::kInt8, abi::kFloat16}) {
      Op op = MakeOp(api, kernels, type, codebook);
      op.GetName = [](const OrtCustomOp*) { return Operator::kName; };
      op.GetInputTypeCount = [](const OrtCustomOp*) { return 1 + Operator::kLayers * kWeightInputs; };
      DescribeProduct(op);
      SetKernel<Kernel>(op);
      ops.push_back(op);
    }
  }
}

}  // namespace skim
