// ai.skim.measure::ReadMemory, the yardstick of measurements: how fast the threads of a session read memory.
//
// Input: `data`, uint8. Output: int64 [1], the sum of its 64-bit words, the last one filled up with zeros, modulo 2^64.
// Attributes: `streams` and `ahead`, see `SumWords`; which of them are fastest is the machine's secret, so measurements
// try some. Work is cut as LutMatMul cuts it: tasks of one size, more than there are threads.
#include "read_memory.h"

#include <algorithm>
#include <atomic>

#include "skim/read_memory.h"
#include "weights.h"

namespace skim {
namespace {

constexpr int64_t kTaskBytes = 256 * 1024;

int64_t ReadAttribute(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  Call(abi::KernelInfoGetAttribute_int64, api, info, name, &value);
  return value;
}

class ReadMemory {
 public:
  ReadMemory(const Op&, const OrtApi* api, const OrtKernelInfo* info)
      : api_(api), streams_(ReadAttribute(api, info, "streams")), ahead_(ReadAttribute(api, info, "ahead")) {
    if (streams_ != 1 && streams_ != 2 && streams_ != kMaxStreams) {
      throw InvalidArgument(NodeText(api, info, kReadMemoryName) + ": streams must be 1, 2 or 4, got " +
                            std::to_string(streams_));
    }
  }

  OrtStatus* Run(OrtKernelContext* context) const {
    return Guarded(api_, [&] { Compute(context); });
  }

 private:
  void Compute(OrtKernelContext* context) const {
    const OrtValue* input = nullptr;
    Call(abi::KernelContext_GetInput, api_, context, size_t{0}, &input);
    const int64_t bytes = CountBytes(api_, input);
    const char* data = static_cast<const char*>(TensorData(api_, input));
    std::atomic<uint64_t> sum{0};
    ParallelFor(api_, context, (bytes + kTaskBytes - 1) / kTaskBytes, [&](int64_t task) {
      const int64_t first = task * kTaskBytes;
      sum += SumWords(data + first, std::min(bytes - first, kTaskBytes), static_cast<int>(streams_), ahead_);
    });
    *static_cast<int64_t*>(TensorData(api_, MakeOutput(api_, context, {1}))) = static_cast<int64_t>(sum);
  }

  const OrtApi* api_;
  int64_t streams_, ahead_;
};

}  // namespace

void DescribeReadMemory(Op& op) {
  op.domain = "ai.skim.measure";
  op.GetName = [](const OrtCustomOp*) { return kReadMemoryName; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) -> int32_t { return abi::kInt64; };
}

void AddReadMemory(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  AddReadMemory<ReadMemory>(api, kernels, ops);
}

}  // namespace skim
