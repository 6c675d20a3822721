// ai.skim::LutMatMul: Y = X W^T + bias with packed weights.
#include "product.h"
#include "weights.h"

namespace skim {
namespace {

class LutMatMul {
 public:
  LutMatMul(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        type_(static_cast<FloatType>(op.activation_type)),
        node_(NodeText(api, info, LutMatMulOperator::kName)),
        layer_(ReadWeights(api, info, node_)),
        arithmetic_(ChooseArithmetic(*op.kernels, layer_.layer().weights, api, info, node_)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  void Compute(OrtKernelContext* context) const {
    const Layer& layer = layer_.layer();
    const int64_t N = layer.weights.N, K = layer.weights.K;
    const Activations x = ReadActivations(api_, context, layer, node_);
    OrtValue* y = MakeOutput(api_, context, x.output_shape);
    if (x.M == 0) return;

    auto* y_data = static_cast<char*>(TensorData(api_, y));
    const int64_t element = FloatBytes(type_);
    const int64_t stride = arithmetic_.prepared_bytes(K);
    char* prepared = ThreadScratch<char>(Scratch::kActivations, std::min(x.M, kTokenBlock) * stride);
    for (int64_t m = 0; m < x.M; m += kTokenBlock) {
      const int64_t tokens = std::min(x.M - m, kTokenBlock);
      EachTokens(api_, context, tokens, [&](int64_t first, int64_t count) {
        arithmetic_.prepare(layer, x.data + (m + first) * K * element, type_, count, prepared + first * stride);
      });
      const RowTasks tasks(layer, tokens);
      ParallelFor(api_, context, tasks.count(), [&](int64_t task) {
        arithmetic_.matmul(layer, prepared, tokens, tasks.begin(task), tasks.end(task), y_data + m * N * element,
                           type_);
      });
    }
  }

  const OrtApi* api_;
  FloatType type_;
  std::string node_;
  IndexedLayer layer_;
  const Arithmetic& arithmetic_;
};

}  // namespace

void AddLutMatMul(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  AddProduct<LutMatMulOperator, LutMatMul>(api, kernels, ops);
}

}  // namespace skim
