// A GPU whose memory is the host's. Any use of it that a GPU would not stand ends the process. Environment variables:
//   SKIM_FAKE_GPU_BYTES    its memory, without limit by default
//   SKIM_FAKE_GPU_WEIGHTS  if set, the runtime's own memory is taken to be on it
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t kAlignment = 256;

std::mutex mutex;
std::map<const char*, size_t> blocks;

// Whether bytes lie in one block.
bool OnDevice(const void* memory, size_t bytes) {
  const auto* first = static_cast<const char*>(memory);
  const std::lock_guard<std::mutex> lock(mutex);
  auto after = blocks.upper_bound(first);
  if (after == blocks.begin()) return false;
  const auto& [block, size] = *--after;
  return first + bytes <= block + size;
}

bool RuntimeOnDevice() { return std::getenv("SKIM_FAKE_GPU_WEIGHTS") != nullptr; }

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fake GPU: %s\n", what);
  std::abort();
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const char* limit = std::getenv("SKIM_FAKE_GPU_BYTES");
  const std::lock_guard<std::mutex> lock(mutex);
  size_t used = bytes;
  for (const auto& [block, size] : blocks) used += size;
  if (limit != nullptr && used > std::strtoull(limit, nullptr, 10)) return cudaErrorMemoryAllocation;
  if (posix_memalign(memory, kAlignment, bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);  // not a number, whatever the type
  blocks[static_cast<char*>(*memory)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  Require(memory == nullptr || blocks.erase(static_cast<char*>(memory)) == 1, "frees what it did not allocate");
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const bool up = kind == cudaMemcpyHostToDevice;
  Require(OnDevice(to, bytes) == up, "copies to the wrong side");
  Require(OnDevice(from, bytes) != up || RuntimeOnDevice(), "copies from the wrong side");
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  const bool on_device = RuntimeOnDevice() || OnDevice(memory, 1);
  attributes->type = on_device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the launch";
}

// Blocks that are allocated now.
extern "C" __attribute__((visibility("default"))) int FakeGpuBlocks() {
  const std::lock_guard<std::mutex> lock(mutex);
  return static_cast<int>(blocks.size());
}
