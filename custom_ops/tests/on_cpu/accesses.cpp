// In kernels compiled with -fsanitize=thread every access calls one of these functions. They are defined here, instead
// of in the sanitizer's own library, which knows nothing of GPU threads: it is not linked.
#include "grid.h"

using skim::on_cpu::RecordRead;
using skim::on_cpu::RecordWrite;

#define HOOK(name) extern "C" void __tsan_##name

HOOK(init)() {}
HOOK(func_entry)(void*) {}
HOOK(func_exit)(void*) {}
HOOK(read_range)(void* address, size_t bytes) { RecordRead(address, bytes); }
HOOK(write_range)(void* address, size_t bytes) { RecordWrite(address, bytes); }
HOOK(vptr_update)(void**, void*) {}

#define HOOKS(bytes)                                                         \
  HOOK(read##bytes)(void* address) { RecordRead(address, bytes); }           \
  HOOK(write##bytes)(void* address) { RecordWrite(address, bytes); }         \
  HOOK(unaligned_read##bytes)(void* address) { RecordRead(address, bytes); } \
  HOOK(unaligned_write##bytes)(void* address) { RecordWrite(address, bytes); }

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
