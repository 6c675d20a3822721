// ai.skim::LutMatMul: Y = X W^T + bias with packed weights.
#include <algorithm>

#include "api.h"
#include "ops.h"
#include "weights.h"

namespace skim {
namespace {

// Tokens for which weights are decoded once: bounds the scratch memory, and 256 make decoding cheap.
constexpr int64_t kTokenBlock = 256;
// A task gets about this many multiply-adds (some microseconds of one thread) and a multiple of this many rows, so
// that the rows of a kernel's tile are in one task. Neither depends on the number of threads.
constexpr int64_t kTaskWork = 64 * 1024;
constexpr int64_t kTaskRows = 48;
constexpr int64_t kTaskTokens = 8;

constexpr int64_t kInt8Accuracy = 4;  // the accuracy level of MatMulNBits that allows for integer arithmetic

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

class LutMatMul {
 public:
  LutMatMul(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        type_(static_cast<FloatType>(op.activation_type)),
        node_(NodeText(api, info, "LutMatMul")),
        layer_(ReadWeights(api, info, node_)),
        arithmetic_(ChooseArithmetic(*op.kernels, info)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  // By the attribute accuracy_level, which may be missing. It means what it means for MatMulNBits.
  const Arithmetic& ChooseArithmetic(const Kernels& kernels, const OrtKernelInfo* info) const {
    int64_t level = 0;
    if (OrtStatus* status = abi::KernelInfoGetAttribute_int64(api_, info, "accuracy_level", &level)) {
      abi::ReleaseStatus(api_, status);
      level = 0;
    }
    if (level < 0 || level > kInt8Accuracy) {
      throw InvalidArgument(node_ + ": accuracy_level must be 0.." + std::to_string(kInt8Accuracy) + ", got " +
                            std::to_string(level));
    }
    return level == kInt8Accuracy && FitsInteger(layer_.layer().weights) ? kernels.integer : kernels.exact;
  }

  void Compute(OrtKernelContext* context) const {
    const Layer& layer = layer_.layer();
    const int64_t N = layer.weights.N, K = layer.weights.K;
    const OrtValue* x = nullptr;
    Call(abi::KernelContext_GetInput, api_, context, size_t{0}, &x);
    std::vector<int64_t> shape = GetTensorInfo(api_, x).shape;
    if (shape.empty() || shape.back() != K) {
      throw InvalidArgument(node_ + ": the last dimension of X must be K=" + std::to_string(K) + ", got shape " +
                            ShapeText(shape));
    }
    shape.back() = N;
    int64_t M = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) M *= shape[i];
    OrtValue* y = nullptr;
    Call(abi::KernelContext_GetOutput, api_, context, size_t{0}, shape.data(), shape.size(), &y);
    if (M == 0) return;

    const auto* x_data = static_cast<const char*>(TensorData(api_, x));
    auto* y_data = static_cast<char*>(TensorData(api_, y));
    const int64_t element = FloatBytes(type_);
    const int64_t stride = arithmetic_.prepared_bytes(K);
    char* prepared = ThreadScratch<char>(Scratch::kActivations, std::min(M, kTokenBlock) * stride);
    for (int64_t m = 0; m < M; m += kTokenBlock) {
      const int64_t tokens = std::min(M - m, kTokenBlock);
      const char* x_block = x_data + m * K * element;
      ParallelFor(api_, context, CeilDiv(tokens, kTaskTokens), [&](int64_t task) {
        const int64_t first = task * kTaskTokens;
        arithmetic_.prepare(layer, x_block + first * K * element, type_, std::min(tokens - first, kTaskTokens),
                            prepared + first * stride);
      });
      const int64_t rows = CeilDiv(std::max<int64_t>(kTaskWork / (K * tokens), 1), kTaskRows) * kTaskRows;
      ParallelFor(api_, context, CeilDiv(N, rows), [&](int64_t task) {
        arithmetic_.matmul(layer, prepared, tokens, task * rows, std::min(N, (task + 1) * rows),
                           y_data + m * N * element, type_);
      });
    }
  }

  const OrtApi* api_;
  FloatType type_;
  std::string node_;
  IndexedLayer layer_;
  const Arithmetic& arithmetic_;
};

OrtStatus* Create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return Guarded(api, [&] { *kernel = new LutMatMul(*static_cast<const Op*>(op), api, info); });
}

}  // namespace

void AddLutMatMul(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  for (int32_t type : {abi::kFloat32, abi::kFloat16}) {
    for (int32_t codebook : {abi::kInt8, abi::kFloat16}) {
      Op op = MakeOp(api, kernels, type, codebook);
      op.GetName = [](const OrtCustomOp*) { return "LutMatMul"; };
      op.GetOutputType = [](const OrtCustomOp* op, size_t) { return static_cast<const Op*>(op)->activation_type; };
      op.CreateKernelV2 = Create;
      op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
        return static_cast<const LutMatMul*>(kernel)->Run(context);
      };
      op.KernelDestroy = [](void* kernel) { delete static_cast<LutMatMul*>(kernel); };
      // The schema is common to all types, so the runtime calls this function of any of them.
      op.InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
        const OrtApi* api = static_cast<const Op*>(op)->api;
        return Guarded(api, [&] {
          OrtTensorTypeAndShapeInfo* x = nullptr;  // owned by the context
          int32_t type = 0;
          Call(abi::ShapeInferContext_GetInputTypeShape, api, context, size_t{0}, &x);
          Call(abi::GetTensorElementType, api, x, &type);
          InferOutput(api, context, type, InferenceAttribute(api, context, "N"), /*replace_last=*/true);
        });
      };
      ops.push_back(op);
    }
  }
}

}  // namespace skim
