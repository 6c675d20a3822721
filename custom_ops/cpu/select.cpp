#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "skim/kernels.h"

namespace skim {
namespace {

const Kernels& FastestKernels() {
#ifdef SKIM_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Avx2Kernels();
  }
#endif
  return ReferenceKernels();
}

struct AlignedDelete {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{32}); }
};

struct Buffer {
  std::unique_ptr<float[], AlignedDelete> memory;
  int64_t floats = 0;
};

}  // namespace

const Kernels* SelectKernels() {
  const Kernels& fastest = FastestKernels();
  const char* name = std::getenv("SKIM_KERNEL");
  if (name == nullptr || *name == '\0' || std::strcmp(name, fastest.name) == 0) return &fastest;
  return std::strcmp(name, ReferenceKernels().name) == 0 ? &ReferenceKernels() : nullptr;
}

float* ThreadScratch(Scratch slot, int64_t floats) {
  static thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.floats < floats) {
    buffer.memory.reset();
    buffer.floats = 0;
    buffer.memory.reset(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t{32})));
    buffer.floats = floats;
  }
  return buffer.memory.get();
}

}  // namespace skim
