// A GPU whose memory is the host's. Any use of it that a GPU would not stand ends the process. Environment variables:
//   SKIM_FAKE_GPU_BYTES    its memory, without limit by default
//   SKIM_FAKE_GPU_WEIGHTS  if set, the runtime's own memory is taken to be on it
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t kAlignment = 256;

std::mutex mutex;
std::map<const char*, size_t> blocks;
int calls = 0;  // that allocate, copy or wait

void Count() {
  const std::lock_guard<std::mutex> lock(mutex);
  ++calls;
}

size_t Used() {
  size_t used = 0;
  for (const auto& [block, size] : blocks) used += size;
  return used;
}

size_t Memory() {
  const char* limit = std::getenv("SKIM_FAKE_GPU_BYTES");
  return limit != nullptr ? std::strtoull(limit, nullptr, 10) : SIZE_MAX;
}

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
  Count();
  const std::lock_guard<std::mutex> lock(mutex);
  if (Used() + bytes > Memory()) return cudaErrorMemoryAllocation;
  if (posix_memalign(memory, kAlignment, bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);  // not a number, whatever the type
  blocks[static_cast<char*>(*memory)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard<std::mutex> lock(mutex);
  *total = Memory();
  *free = *total - Used();
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  Count();
  const std::lock_guard<std::mutex> lock(mutex);
  Require(memory == nullptr || blocks.erase(static_cast<char*>(memory)) == 1, "frees what it did not allocate");
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Count();
  const bool up = kind == cudaMemcpyHostToDevice;
  Require(OnDevice(to, bytes) == up, "copies to the wrong side");
  Require(OnDevice(from, bytes) != up || RuntimeOnDevice(), "copies from the wrong side");
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  Count();
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

#define SKIM_EXPORT extern "C" __attribute__((visibility("default")))

// Blocks that are allocated now.
SKIM_EXPORT int FakeGpuBlocks() {
  const std::lock_guard<std::mutex> lock(mutex);
  return static_cast<int>(blocks.size());
}

// How often something was allocated, freed, copied or waited for until now.
SKIM_EXPORT int FakeGpuCalls() {
  const std::lock_guard<std::mutex> lock(mutex);
  return calls;
}
