#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "skim/kernels.h"

#ifdef SKIM_ARM64
#include <sys/auxv.h>
#endif

namespace skim {
namespace {

struct AlignedDelete {
  void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t{kAlignment}); }
};

struct Buffer {
  std::unique_ptr<char[], AlignedDelete> memory;
  int64_t bytes = 0;
};

}  // namespace

const std::vector<const Kernels*>& AvailableKernels() {
  static const std::vector<const Kernels*> kernels = [] {
    std::vector<const Kernels*> list;
#ifdef SKIM_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")) {
      list.push_back(&Avx512Kernels());
    }
    if (avx2) list.push_back(&Avx2Kernels());
#endif
#ifdef SKIM_ARM64
    const bool dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    if (dotprod && getauxval(AT_HWCAP2) & HWCAP2_I8MM) list.push_back(&NeonI8mmKernels());
    if (dotprod) list.push_back(&NeonDotprodKernels());
    list.push_back(&NeonKernels());
#endif
    list.push_back(&ReferenceKernels());
    return list;
  }();
  return kernels;
}

const Kernels* SelectKernels() {
  const char* name = std::getenv("SKIM_KERNEL");
  if (name == nullptr || *name == '\0') return AvailableKernels().front();
  for (const Kernels* kernels : AvailableKernels()) {
    if (std::strcmp(name, kernels->name) == 0) return kernels;
  }
  return nullptr;
}

void* ThreadScratch(Scratch slot, int64_t bytes) {
  static thread_local Buffer buffers[4];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.bytes < bytes) {
    buffer.memory.reset();
    buffer.bytes = 0;
    buffer.memory.reset(static_cast<char*>(::operator new[](bytes, std::align_val_t{kAlignment})));
    buffer.bytes = bytes;
  }
  return buffer.memory.get();
}

}  // namespace skim
