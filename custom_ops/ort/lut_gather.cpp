// ai.skim::LutGather: rows of packed weights; only the rows that are asked for are decoded.
#include <algorithm>

#include "gather.h"
#include "weights.h"

namespace skim {
namespace {

constexpr int64_t kTaskElements = 64 * 1024;

class LutGather {
 public:
  LutGather(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        kernels_(*op.kernels),
        node_(NodeText(api, info, kGatherName)),
        type_(ReadOutputType(api, info, node_, /*bfloat16=*/false)),
        layer_(ReadWeights(api, info, node_)) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  void Compute(OrtKernelContext* context) const {
    const Layer& layer = layer_.layer();
    const int64_t N = layer.weights.N, K = layer.weights.K;
    const Rows rows = ReadRows(api_, context, K, type_, node_);
    for (int64_t i = 0; i < rows.count; ++i) {
      if (rows.ids[i] < 0 || rows.ids[i] >= N) {
        throw InvalidArgument(node_ + ": ids must be 0.." + std::to_string(N - 1) + ", got " +
                              std::to_string(rows.ids[i]));
      }
    }
    if (rows.count == 0) return;
    auto* y = static_cast<char*>(rows.y);
    const int64_t per_task = std::max<int64_t>(kTaskElements / K, 1);
    ParallelFor(api_, context, (rows.count + per_task - 1) / per_task, [&](int64_t task) {
      for (int64_t i = task * per_task; i < std::min(rows.count, (task + 1) * per_task); ++i) {
        kernels_.gather(layer, layer_.StoredRow(rows.ids[i]), y + i * K * FloatBytes(type_), type_);
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
  AddGather<LutGather>(api, kernels, ops);
}

}  // namespace skim
