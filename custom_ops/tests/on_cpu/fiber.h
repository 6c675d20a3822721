// A function that pauses and goes on later, on a stack of its own.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace skim::on_cpu {

class Fiber {
 public:
  // `body` begins at the first `Resume`, and anew at the first after its end.
  explicit Fiber(void (*body)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the body until it pauses or ends. Not from within a fiber.
  void Resume();
  // Returns to the caller of `Resume`, from within the body.
  static void Pause();

 private:
#if defined(__x86_64__) || defined(__aarch64__)
  using Context = void*;  // the stack pointer; registers lie on the stack
#else
  using Context = ucontext_t;
#endif

  static void Run();
  void Prepare();
  static void Switch(Context* from, Context* to);

  void (*body_)();
  void* mapping_;  // a guard page, then the stack
  char* stack_;
  Context self_, resumer_;
  const void* resumer_stack_ = nullptr;  // for AddressSanitizer
  size_t resumer_stack_bytes_ = 0;
};

}  // namespace skim::on_cpu
