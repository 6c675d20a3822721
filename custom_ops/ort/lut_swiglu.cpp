// ai.skim::LutSwiglu: Y = silu(X G^T + g) * (X U^T + u), both weights packed: the first half of a gated feed-forward
// network (SwiGLU, arXiv 2002.05202) in one node, with one pass over the activations.
#include "product.h"
#include "weights.h"

namespace skim {
namespace {

class LutSwiglu {
 public:
  LutSwiglu(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        kernels_(*op.kernels),
        type_(static_cast<FloatType>(op.activation_type)),
        node_(NodeText(api, info, LutSwigluOperator::kName)),
        gate_(ReadWeights(api, info, node_, 1, "gate_")),
        up_(ReadWeights(api, info, node_, 1 + kWeightInputs, "up_")),
        of_gate_(ChooseArithmetic(kernels_, gate_.layer().weights, api, info, node_)),
        of_up_(ChooseArithmetic(kernels_, up_.layer().weights, api, info, node_)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  // Whether both products read the activations in the same form.
  bool ShareActivations() const {
    return &of_gate_ == &of_up_ && gate_.layer().weights.column_scale.size == 0 &&
           up_.layer().weights.column_scale.size == 0;
  }

  void Compute(OrtKernelContext* context) const {
    const Layer &gate = gate_.layer(), &up = up_.layer();
    const int64_t N = gate.weights.N, K = gate.weights.K;
    const Activations x = ReadActivations(api_, context, gate, node_);
    OrtValue* y = MakeOutput(api_, context, x.output_shape);
    if (x.M == 0) return;

    auto* y_data = static_cast<char*>(TensorData(api_, y));
    const int64_t element = FloatBytes(type_), block = std::min(x.M, kTokenBlock);
    const int64_t gate_stride = of_gate_.prepared_bytes(K), up_stride = of_up_.prepared_bytes(K);
    const bool share = ShareActivations();
    const int64_t prepared_bytes = block * (gate_stride + (share ? 0 : up_stride));
    char* gate_x = ThreadScratch<char>(Scratch::kActivations, prepared_bytes + 2 * block * N * int64_t{sizeof(float)});
    char* up_x = share ? gate_x : gate_x + block * gate_stride;
    auto* gates = reinterpret_cast<float*>(gate_x + prepared_bytes);
    float* ups = gates + block * N;
    for (int64_t m = 0; m < x.M; m += kTokenBlock) {
      const int64_t tokens = std::min(x.M - m, kTokenBlock);
      EachTokens(api_, context, tokens, [&](int64_t first, int64_t count) {
        const char* from = x.data + (m + first) * K * element;
        of_gate_.prepare(gate, from, type_, count, gate_x + first * gate_stride);
        if (!share) of_up_.prepare(up, from, type_, count, up_x + first * up_stride);
      });
      const RowTasks gate_tasks(gate, tokens), up_tasks(up, tokens);
      ParallelFor(api_, context, gate_tasks.count() + up_tasks.count(), [&](int64_t task) {
        if (task < gate_tasks.count()) {
          of_gate_.matmul(gate, gate_x, tokens, gate_tasks.begin(task), gate_tasks.end(task), gates,
                          FloatType::kFloat32);
        } else {
          task -= gate_tasks.count();
          of_up_.matmul(up, up_x, tokens, up_tasks.begin(task), up_tasks.end(task), ups, FloatType::kFloat32);
        }
      });
      EachTokens(api_, context, tokens, [&](int64_t first, int64_t count) {
        kernels_.swiglu(gates + first * N, ups + first * N, count * N, y_data + (m + first) * N * element, type_);
      });
    }
  }

  const OrtApi* api_;
  const Kernels& kernels_;
  FloatType type_;
  std::string node_;
  IndexedLayer gate_, up_;
  const Arithmetic &of_gate_, &of_up_;
};

}  // namespace

void AddLutSwiglu(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  AddProduct<LutSwigluOperator, LutSwiglu>(api, kernels, ops);
}

}  // namespace skim
