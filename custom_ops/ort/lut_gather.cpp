// ai.skim::LutGather: rows of packed weights; only the rows that are asked for are decoded.
#include <algorithm>

#include "api.h"
#include "ops.h"
#include "weights.h"

namespace skim {
namespace {

constexpr int64_t kTaskElements = 64 * 1024;

class LutGather {
 public:
  LutGather(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        kernels_(*op.kernels),
        node_(NodeText(api, info, "LutGather")),
        type_(ReadType(info)),
        layer_(ReadWeights(api, info, node_)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  FloatType ReadType(const OrtKernelInfo* info) const {
    int64_t dtype = 0;
    Call(abi::KernelInfoGetAttribute_int64, api_, info, "dtype", &dtype);
    if (dtype != abi::kFloat32 && dtype != abi::kFloat16) {
      throw InvalidArgument(node_ + ": dtype must be 1 (float32) or 10 (float16), got " + std::to_string(dtype));
    }
    return static_cast<FloatType>(dtype);
  }

  void Compute(OrtKernelContext* context) const {
    const Layer& layer = layer_.layer();
    const int64_t N = layer.weights.N, K = layer.weights.K;
    const OrtValue* ids = nullptr;
    Call(abi::KernelContext_GetInput, api_, context, size_t{0}, &ids);
    std::vector<int64_t> shape = GetTensorInfo(api_, ids).shape;
    int64_t count = 1;
    for (int64_t dimension : shape) count *= dimension;
    const auto* id = static_cast<const int64_t*>(TensorData(api_, ids));
    for (int64_t i = 0; i < count; ++i) {
      if (id[i] < 0 || id[i] >= N) {
        throw InvalidArgument(node_ + ": ids must be 0.." + std::to_string(N - 1) + ", got " + std::to_string(id[i]));
      }
    }
    shape.push_back(K);
    OrtValue* y = MakeOutput(api_, context, shape);
    // They differ if the shape of ids is unknown, so that no type was inferred, and the model declares another one.
    if (GetTensorInfo(api_, y).element_type != static_cast<int32_t>(type_)) {
      throw InvalidArgument(node_ + ": the model declares another type for the output than dtype says");
    }
    if (count == 0) return;
    auto* y_data = static_cast<char*>(TensorData(api_, y));
    const int64_t per_task = std::max<int64_t>(kTaskElements / K, 1);
    ParallelFor(api_, context, (count + per_task - 1) / per_task, [&](int64_t task) {
      for (int64_t i = task * per_task; i < std::min(count, (task + 1) * per_task); ++i) {
        kernels_.gather(layer, layer_.StoredRow(id[i]), y_data + i * K * FloatBytes(type_), type_);
      }
    });
  }

  const OrtApi* api_;
  const Kernels& kernels_;
  std::string node_;
  FloatType type_;
  IndexedLayer layer_;
};

}  // namespace

void AddLutGather(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  for (int32_t codebook : {abi::kInt8, abi::kFloat16}) {
    Op op = MakeOp(api, kernels, abi::kInt64, codebook);
    op.GetName = [](const OrtCustomOp*) { return "LutGather"; };
    // The output's type follows from no input. A variadic output that is not homogeneous is the one kind whose type the
    // runtime leaves to the shape function.
    op.GetOutputType = [](const OrtCustomOp*, size_t) -> int32_t { return abi::kUndefined; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return abi::kVariadic; };
    op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    SetKernel<LutGather>(op);
    op.InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
      const OrtApi* api = static_cast<const Op*>(op)->api;
      return Guarded(api, [&] {
        const auto type = static_cast<int32_t>(InferenceAttribute(api, context, "dtype"));
        InferOutput(api, context, type, InferenceAttribute(api, context, "K"), /*replace_last=*/false);
      });
    };
    ops.push_back(op);
  }
}

}  // namespace skim
