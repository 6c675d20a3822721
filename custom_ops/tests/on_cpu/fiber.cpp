#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// skim_switch_stack(from, to): pushes the registers that a function must preserve, stores the stack pointer to *from,
// loads it from *to and pops them. A system call for each switch, which swapcontext makes, would take 20 times as long.
#if defined(__x86_64__)
asm(R"(
  .pushsection .text
  .type skim_switch_stack, @function
skim_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size skim_switch_stack, . - skim_switch_stack
  .popsection
)");
#elif defined(__aarch64__)
asm(R"(
  .pushsection .text
  .type skim_switch_stack, @function
skim_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  ldr x9, [x1]
  mov sp, x9
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size skim_switch_stack, . - skim_switch_stack
  .popsection
)");
#endif

extern "C" void skim_switch_stack(void** from, void** to);

namespace skim::on_cpu {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;  // no system's pages are larger

Fiber* running;

// AddressSanitizer must know of every switch: where the stack is that is switched to, before, and from, after it.
void BeforeSwitch([[maybe_unused]] void** left, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(left, stack, bytes);
#endif
}

void AfterSwitch([[maybe_unused]] void* entered, [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(entered, stack, bytes);
#endif
}

}  // namespace

#if defined(__x86_64__) || defined(__aarch64__)

void Fiber::Prepare() {
#ifdef __x86_64__
  // Six registers, the address to return to, and the one that `Run` would return to.
  constexpr int kWords = 8, kReturnAddress = 6;
#else
  constexpr int kWords = 20, kReturnAddress = 11;  // x30
#endif
  const auto frame = reinterpret_cast<uintptr_t*>(stack_ + kStackBytes) - kWords;
  for (int i = 0; i < kWords; ++i) frame[i] = i == kReturnAddress ? reinterpret_cast<uintptr_t>(&Run) : 0;
  self_ = frame;
}

void Fiber::Switch(Context* from, Context* to) { skim_switch_stack(from, to); }

#else

void Fiber::Prepare() {
  getcontext(&self_);
  self_.uc_stack.ss_sp = stack_;
  self_.uc_stack.ss_size = kStackBytes;
  makecontext(&self_, Run, 0);
}

void Fiber::Switch(Context* from, Context* to) { swapcontext(from, to); }

#endif

Fiber::Fiber(void (*body)()) : body_(body) {
  mapping_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED || mprotect(mapping_, kGuardBytes, PROT_NONE) != 0) {
    std::perror("the stack of a fiber");
    std::abort();
  }
  stack_ = static_cast<char*>(mapping_) + kGuardBytes;
  Prepare();
}

Fiber::~Fiber() { munmap(mapping_, kGuardBytes + kStackBytes); }

void Fiber::Run() {
  AfterSwitch(nullptr, &running->resumer_stack_, &running->resumer_stack_bytes_);
  for (;;) {
    running->body_();
    Pause();
  }
}

void Fiber::Resume() {
  running = this;
  void* left = nullptr;
  BeforeSwitch(&left, stack_, kStackBytes);
  Switch(&resumer_, &self_);
  AfterSwitch(left, nullptr, nullptr);
}

void Fiber::Pause() {
  Fiber* const self = running;
  void* left = nullptr;
  BeforeSwitch(&left, self->resumer_stack_, self->resumer_stack_bytes_);
  Switch(&self->self_, &self->resumer_);
  AfterSwitch(left, &self->resumer_stack_, &self->resumer_stack_bytes_);
}

}  // namespace skim::on_cpu
