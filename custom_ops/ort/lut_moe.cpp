// ai.skim::LutMoe: a mixture of experts, each of them a gated feed-forward network with packed weights. Only the
// experts that a token was given are read for it.
#include <algorithm>
#include <vector>

#include "../cpu/half.h"
#include "product.h"
#include "weights.h"

namespace skim {
namespace {

constexpr int64_t kMaxExperts = 65536;
constexpr int64_t kBlockPairs = 4096;  // of a token and an expert: bounds the scratch memory

// How gate and up go together, the attribute `gating`: silu(g) * u, or what gpt-oss has in its place (docs/format.md).
enum Gating : int64_t { kSwiglu, kClampedSwiglu, kGatings };
constexpr float kAlpha = 1.702f, kLimit = 7.0f;

// Makes of `count` gates and ups those whose SwiGLU is min(g, 7) sigmoid(1.702 min(g, 7)) (max(-7, min(u, 7)) + 1).
void Clamp(float* gates, float* ups, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    gates[i] = kAlpha * std::min(gates[i], kLimit);
    ups[i] = (std::max(-kLimit, std::min(ups[i], kLimit)) + 1.0f) / kAlpha;
  }
}

// Its inputs before the weights.
enum MoeInput : size_t { kX, kExperts, kShares, kFirstWeight };

// One product of a batch of them: y [M, N of the layer] = x W^T + bias.
struct Product {
  const Arithmetic* arithmetic;
  const Layer* layer;
  const char* x;  // prepared
  int64_t M;
  float* y;
};

// Computes products in one parallel loop over the rows of all of them.
void RunProducts(const OrtApi* api, OrtKernelContext* context, const std::vector<Product>& products) {
  std::vector<int64_t> ends;  // tasks of the products up to each
  int64_t tasks = 0;
  for (const Product& p : products) ends.push_back(tasks += RowTasks(*p.layer, p.M).count());
  ParallelFor(api, context, tasks, [&](int64_t task) {
    const size_t i = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
    const Product& p = products[i];
    const RowTasks rows(*p.layer, p.M);
    if (i > 0) task -= ends[i - 1];
    p.arithmetic->matmul(*p.layer, p.x, p.M, rows.begin(task), rows.end(task), p.y, FloatType::kFloat32);
  });
}

// The pairs of a token and one of its experts, sorted by expert; those of one expert keep the order of the tokens.
class SortedPairs {
 public:
  // `experts` [tokens, per_token], each below `count`.
  SortedPairs(const int64_t* experts, int64_t tokens, int64_t per_token, int64_t count)
      : token_(tokens * per_token), place_(tokens * per_token), begin_(count + 1) {
    for (size_t i = 0; i < place_.size(); ++i) ++begin_[experts[i] + 1];
    for (int64_t e = 0; e < count; ++e) begin_[e + 1] += begin_[e];
    std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
    for (size_t i = 0; i < place_.size(); ++i) {
      place_[i] = next[experts[i]]++;
      token_[place_[i]] = static_cast<int64_t>(i) / per_token;
    }
  }

  int64_t count() const { return static_cast<int64_t>(place_.size()); }
  int64_t token(int64_t place) const { return token_[place]; }
  int64_t place(int64_t pair) const { return place_[pair]; }  // of an element of `experts`

  // Calls body(expert, first place, pairs) for the experts that have pairs, for at most so many of them at once.
  template <typename Body>
  void EachExpert(int64_t most, Body&& body) const {
    for (size_t e = 0; e + 1 < begin_.size(); ++e) {
      for (int64_t first = begin_[e]; first < begin_[e + 1]; first += most) {
        body(static_cast<int64_t>(e), first, std::min(most, begin_[e + 1] - first));
      }
    }
  }

 private:
  std::vector<int64_t> token_, place_, begin_;
};

class LutMoe {
 public:
  LutMoe(const Op& op, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api),
        kernels_(*op.kernels),
        type_(static_cast<FloatType>(op.activation_type)),
        node_(NodeText(api, info, "LutMoe")),
        count_(ReadCount(api, info, "experts")),
        per_token_(ReadCount(api, info, "per_token")),
        gating_(ReadGating(api, info)),
        hidden_(Named(node_, [&] { return ReadAttribute(api, info, "K"); })),
        inner_(Named(node_, [&] { return ReadAttribute(api, info, "N"); })),
        gate_(*this, api, info, "gate_", 0, {inner_, hidden_}),
        up_(*this, api, info, "up_", 1, {inner_, hidden_}),
        down_(*this, api, info, "down_", 2, {hidden_, inner_}) {}

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  // One of the three linear layers of all experts.
  struct Part {
    // `shape`: of one expert.
    Part(const LutMoe& node, const OrtApi* api, const OrtKernelInfo* info, const char* prefix, size_t index,
         Shape shape)
        : Part(ReadWeights(api, info, node.node_, {node.count_ * shape.N, shape.K},
                           kFirstWeight + index * kWeightInputs, prefix),
               node, api, info) {}
    Part(const PackedLinear& weights, const LutMoe& node, const OrtApi* api, const OrtKernelInfo* info)
        : experts(weights, node.count_),
          arithmetic(ChooseArithmetic(node.kernels_, weights, api, info, node.node_)),
          has_column_scale(weights.column_scale.size != 0) {}

    ExpertLayers experts;
    const Arithmetic& arithmetic;
    bool has_column_scale;
  };

  int64_t ReadCount(const OrtApi* api, const OrtKernelInfo* info, const char* name) const {
    const int64_t count = Named(node_, [&] { return ReadAttribute(api, info, name); });
    if (count < 1 || count > kMaxExperts) {
      throw InvalidArgument(node_ + ": " + name + " must be 1.." + std::to_string(kMaxExperts) + ", got " +
                            std::to_string(count));
    }
    return count;
  }

  int64_t ReadGating(const OrtApi* api, const OrtKernelInfo* info) const {
    const int64_t gating = Named(node_, [&] { return ReadAttribute(api, info, "gating"); });
    if (gating < 0 || gating >= kGatings) {
      throw InvalidArgument(node_ + ": gating must be 0 or 1, got " + std::to_string(gating));
    }
    return gating;
  }

  // An input with an element for each of a token's experts: the shape of X with another last dimension.
  const void* ReadPerExpert(const OrtKernelContext* context, MoeInput input, const char* name,
                            const std::vector<int64_t>& wanted) const {
    const OrtValue* value = nullptr;
    Call(abi::KernelContext_GetInput, api_, context, size_t{input}, &value);
    if (const std::vector<int64_t> shape = GetTensorInfo(api_, value).shape; shape != wanted) {
      throw InvalidArgument(node_ + ": " + name + " must have shape " + ShapeText(wanted) + ", got " +
                            ShapeText(shape));
    }
    return TensorData(api_, value);
  }

  void Compute(OrtKernelContext* context) const {
    Activations x = ReadActivations(api_, context, gate_.experts.layer(0), node_);
    std::vector<int64_t> wanted = x.output_shape;
    wanted.back() = per_token_;
    const auto* experts = static_cast<const int64_t*>(ReadPerExpert(context, kExperts, "experts", wanted));
    const auto* shares = static_cast<const char*>(ReadPerExpert(context, kShares, "shares", wanted));
    for (int64_t i = 0; i < x.M * per_token_; ++i) {
      if (experts[i] < 0 || experts[i] >= count_) {
        throw InvalidArgument(node_ + ": experts must be 0.." + std::to_string(count_ - 1) + ", got " +
                              std::to_string(experts[i]));
      }
    }
    x.output_shape.back() = hidden_;
    OrtValue* y = MakeOutput(api_, context, x.output_shape);
    if (x.M == 0) return;
    auto* y_data = static_cast<char*>(TensorData(api_, y));
    const int64_t element = FloatBytes(type_), block = std::max<int64_t>(kBlockPairs / per_token_, 1);
    for (int64_t m = 0; m < x.M; m += block) {
      const int64_t tokens = std::min(block, x.M - m);
      const SortedPairs pairs(experts + m * per_token_, tokens, per_token_, count_);
      ComputeBlock(context, x.data + m * hidden_ * element, tokens, pairs, shares + m * per_token_ * element,
                   y_data + m * hidden_ * element);
    }
  }

  void ComputeBlock(OrtKernelContext* context, const char* x, int64_t tokens, const SortedPairs& pairs,
                    const char* shares, char* y) const {
    // Whether gate and up read the activations in the same form.
    const bool share = &gate_.arithmetic == &up_.arithmetic && !gate_.has_column_scale && !up_.has_column_scale;
    const int64_t count = pairs.count(), element = FloatBytes(type_);
    const int64_t gate_stride = gate_.arithmetic.prepared_bytes(hidden_);
    const int64_t up_stride = up_.arithmetic.prepared_bytes(hidden_);
    const int64_t down_stride = down_.arithmetic.prepared_bytes(inner_);
    const int64_t x_bytes = count * (gate_stride + (share ? 0 : up_stride));
    const int64_t floats = int64_t{sizeof(float)};
    char* gate_x = ThreadScratch<char>(
        Scratch::kActivations, x_bytes + count * down_stride + floats * count * (2 * inner_ + hidden_) + kAlignment);
    char* up_x = share ? gate_x : gate_x + count * gate_stride;
    char* down_x = gate_x + x_bytes;
    auto* gates = reinterpret_cast<float*>(down_x + count * down_stride);
    float* ups = gates + count * inner_;
    float* results = ups + count * inner_;  // of the experts, [count, hidden]

    // Every pair has its own copy, so that those of an expert stand together; what prepares one is cheap beside what
    // the expert does with it.
    EachTokens(api_, context, count, [&](int64_t first, int64_t some) {
      for (int64_t i = first; i < first + some; ++i) {
        const char* token = x + pairs.token(i) * hidden_ * element;
        gate_.arithmetic.prepare(gate_.experts.layer(0), token, type_, 1, gate_x + i * gate_stride);
        if (!share) up_.arithmetic.prepare(up_.experts.layer(0), token, type_, 1, up_x + i * up_stride);
      }
    });
    std::vector<Product> products;
    pairs.EachExpert(kTokenBlock, [&](int64_t expert, int64_t first, int64_t some) {
      products.push_back({&gate_.arithmetic, &gate_.experts.layer(expert), gate_x + first * gate_stride, some,
                          gates + first * inner_});
      products.push_back(
          {&up_.arithmetic, &up_.experts.layer(expert), up_x + first * up_stride, some, ups + first * inner_});
    });
    RunProducts(api_, context, products);

    EachTokens(api_, context, count, [&](int64_t first, int64_t some) {
      float *gated = gates + first * inner_, *up = ups + first * inner_;
      if (gating_ == kClampedSwiglu) Clamp(gated, up, some * inner_);
      kernels_.swiglu(gated, up, some * inner_, gated, FloatType::kFloat32);
      down_.arithmetic.prepare(down_.experts.layer(0), gated, FloatType::kFloat32, some, down_x + first * down_stride);
    });
    products.clear();
    pairs.EachExpert(kTokenBlock, [&](int64_t expert, int64_t first, int64_t some) {
      products.push_back({&down_.arithmetic, &down_.experts.layer(expert), down_x + first * down_stride, some,
                          results + first * hidden_});
    });
    RunProducts(api_, context, products);

    EachTokens(api_, context, tokens, [&](int64_t first, int64_t some) {
      for (int64_t t = first; t < first + some; ++t) {
        float* sum = results + pairs.place(t * per_token_) * hidden_;
        for (int64_t pair = t * per_token_; pair < (t + 1) * per_token_; ++pair) {
          Add(results + pairs.place(pair) * hidden_, LoadFloat(shares, type_, pair), pair > t * per_token_, sum);
        }
        for (int64_t k = 0; k < hidden_; ++k) StoreFloat(y, type_, t * hidden_ + k, sum[k]);
      }
    });
  }

  // sum = share * result, or that more than it was.
  void Add(const float* result, float share, bool more, float* sum) const {
    for (int64_t k = 0; k < hidden_; ++k) sum[k] = (more ? sum[k] : 0.0f) + share * result[k];
  }

  const OrtApi* api_;
  const Kernels& kernels_;
  FloatType type_;
  std::string node_;
  int64_t count_, per_token_, gating_, hidden_, inner_;
  Part gate_, up_, down_;
};

}  // namespace

void AddLutMoe(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  for (int32_t type : {abi::kFloat32, abi::kFloat16}) {
    for (int32_t codebook : {abi::kInt8, abi::kFloat16}) {
      Op op = MakeOp(api, kernels, type, codebook);
      op.first_weight = kFirstWeight;
      op.GetName = [](const OrtCustomOp*) { return "LutMoe"; };
      op.GetInputTypeCount = [](const OrtCustomOp*) { return kFirstWeight + 3 * kWeightInputs; };
      op.GetInputType = [](const OrtCustomOp* op, size_t index) {
        return index == kExperts ? abi::kInt64 : InputType(op, index);
      };
      DescribeProduct(op);
      op.InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
        return InferProduct(op, context, "K");
      };
      SetKernel<LutMoe>(op);
      ops.push_back(op);
    }
  }
}

}  // namespace skim
