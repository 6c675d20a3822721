#include "cuda_weights.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "../cpu/half.h"
#include "weights.h"

namespace skim {
namespace {

int64_t Aligned(int64_t bytes) {
  return (bytes + cuda::kDeviceAlignment - 1) / cuda::kDeviceAlignment * cuda::kDeviceAlignment;
}

// A layer in the form that the CUDA kernels take, still on the host.
class HostLayer {
 public:
  explicit HostLayer(const PackedLinear& weights) : indexed_(weights), column_scale_(weights.column_scale.size) {
    layer_ = {indexed_.layer(), 1, indexed_.stored(), false};
    const Tensor<uint16_t>& scale = weights.column_scale;
    float largest = 0;
    for (int64_t k = 0; k < scale.size; ++k) largest = std::max(largest, HalfToFloat(scale.data[k]));
    if (largest > 0) layer_.column_unit = std::exp2(std::ceil(std::log2(largest)));
    for (int64_t k = 0; k < scale.size; ++k) {
      column_scale_[k] = FloatToHalf(HalfToFloat(scale.data[k]) / layer_.column_unit);
    }
    PackedLinear& view = layer_.layer.weights;
    view.column_scale.data = column_scale_.data();
    view.codes = {};  // the runs point into these
    view.codebook = {};
    view.row_scale = {};
    view.row_class = {};
  }

  const cuda::DeviceLayer& layer() const { return layer_; }

  // The layer with its tensors elsewhere: place(pointer, bytes) is called for the pointer to each.
  template <typename Place>
  cuda::DeviceLayer Placed(Place&& place) const {
    cuda::DeviceLayer placed = layer_;
    PackedLinear& weights = placed.layer.weights;
    const auto tensor = [&](auto*& pointer, int64_t bytes) {
      if (pointer != nullptr) place(pointer, bytes);
    };
    const int entry_bytes = weights.codebook_type == CodebookType::kInt8 ? 1 : 2;
    for (int i = 0; i < placed.layer.run_count; ++i) {
      RowRun& run = placed.layer.runs[i];
      tensor(run.codes, run.count * RowBytes(ClassBits(run.row_class), weights.K));
      tensor(run.codebook, run.count * CodebookEntries(run.row_class) * entry_bytes);
      tensor(run.row_scale, run.count * (IsAffine(run.row_class) ? 2 : 1) * 2);
    }
    tensor(placed.layer.destination, weights.N * 4);
    tensor(placed.stored, weights.N * 4);
    tensor(weights.column_scale.data, weights.column_scale.size * 2);
    tensor(weights.bias.data, weights.bias.size * 4);
    return placed;
  }

 private:
  IndexedLayer indexed_;
  std::vector<uint16_t> column_scale_;
  cuda::DeviceLayer layer_;
};

std::string BytesText(int64_t bytes) { return std::to_string(bytes) + " bytes of weights"; }

// What a user must know who has too little memory.
std::string RoomText(const std::string& tensor, int64_t bytes) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return tensor + " and the tensors beside it take " + std::to_string(bytes) + " bytes; of " + std::to_string(total) +
         " bytes of the GPU " + std::to_string(free) + " are free";
}

}  // namespace

void CheckCuda(int error, const std::string& node, const std::string& details) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it once more
  const char* message = cudaGetErrorString(static_cast<cudaError_t>(error));
  throw std::runtime_error(node + ": CUDA: " + message + " (" + details + ")");
}

void CudaFree::operator()(void* memory) const { cudaFree(memory); }

DeviceWeights::DeviceWeights(const PackedLinear& weights, const std::string& node, const std::string& tensor) {
  const HostLayer host(weights);
  int64_t size = 0;
  host.Placed([&](auto*&, int64_t bytes) { size += Aligned(bytes); });
  void* memory = nullptr;
  const int error = cudaMalloc(&memory, size);
  CheckCuda(error, node, error == cudaErrorMemoryAllocation ? RoomText(tensor, size) : BytesText(size));
  memory_.reset(memory);
  char* next = static_cast<char*>(memory);
  layer_ = host.Placed([&](auto*& pointer, int64_t bytes) {
    CheckCuda(cudaMemcpy(next, pointer, bytes, cudaMemcpyHostToDevice), node, BytesText(size));
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(next);
    next += Aligned(bytes);
  });
  // A copy may still be on its way when cudaMemcpy returns, and the session's stream does not wait for it.
  CheckCuda(cudaDeviceSynchronize(), node, BytesText(size));
}

bool DeviceWeights::Equal(const PackedLinear& weights, const std::string& node) const {
  const PackedLinear& own = layer_.layer.weights;
  if (own.N != weights.N || own.K != weights.K || own.codebook_type != weights.codebook_type ||
      !std::equal(own.rows_per_class, own.rows_per_class + kClasses, weights.rows_per_class) ||
      own.column_scale.size != weights.column_scale.size || own.bias.size != weights.bias.size) {
    return false;
  }
  const HostLayer host(weights);
  bool equal = host.layer().column_unit == layer_.column_unit;
  std::vector<char> copy(4 << 20);
  const char* next = static_cast<const char*>(memory_.get());
  host.Placed([&](auto*& pointer, int64_t bytes) {
    for (int64_t done = 0; equal && done < bytes; done += copy.size()) {
      const int64_t part = std::min<int64_t>(bytes - done, copy.size());
      CheckCuda(cudaMemcpy(copy.data(), next + done, part, cudaMemcpyDeviceToHost), node, BytesText(bytes));
      equal = std::memcmp(copy.data(), reinterpret_cast<const char*>(pointer) + done, part) == 0;
    }
    next += Aligned(bytes);
  });
  return equal;
}

std::shared_ptr<const DeviceWeights> UploadWeights(const OrtApi* api, const OrtKernelInfo* info,
                                                   const std::string& node, size_t first, const std::string& prefix) {
  // The operators ask for weights on the CPU (MakeOp). A runtime that has them on the GPU all the same costs a copy.
  std::list<std::vector<char>> copies;
  const ToHost to_host = [&](const void* data, int64_t bytes) -> const void* {
    cudaPointerAttributes attributes{};
    if (bytes > 0) CheckCuda(cudaPointerGetAttributes(&attributes, data), node, BytesText(bytes));
    if (attributes.type != cudaMemoryTypeDevice) return data;
    std::vector<char>& copy = copies.emplace_back(bytes);
    CheckCuda(cudaMemcpy(copy.data(), data, bytes, cudaMemcpyDeviceToHost), node, BytesText(bytes));
    return copy.data();
  };
  const PackedLinear weights = ReadWeights(api, info, node, first, prefix, to_host);
  int device = 0;
  CheckCuda(cudaGetDevice(&device), node, BytesText(weights.codes.size));

  using Key = std::pair<const void*, int>;
  static std::mutex mutex;
  static auto& uploaded = *new std::map<Key, std::weak_ptr<const DeviceWeights>>();
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key{weights.codes.data, device};
  // An address may come back with other contents: a session unmaps its weights before it destroys its kernels.
  if (auto found = uploaded[key].lock(); found != nullptr && found->Equal(weights, node)) return found;
  for (auto entry = uploaded.begin(); entry != uploaded.end();) {
    entry = entry->second.expired() ? uploaded.erase(entry) : std::next(entry);
  }
  auto made = std::make_shared<const DeviceWeights>(weights, node, InputName(api, info, first));
  uploaded[key] = made;
  return made;
}

}  // namespace skim
