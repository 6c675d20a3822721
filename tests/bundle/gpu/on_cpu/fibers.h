// Runs a grid of workgroups on one CPU thread: every GPU thread is a fiber, and a barrier yields to the next one.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace on_cpu {

struct Index {
  unsigned x, y, z;
};

inline Index group, on_thread;  // of the fiber that runs
inline std::function<void()> body;
inline ucontext_t scheduler;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 << 10);
  bool done = false;
};

inline std::vector<Fiber> fibers;
inline Fiber* running;

inline void enter() {
  body();
  running->done = true;
}

inline void barrier() { swapcontext(&running->context, &scheduler); }

// One workgroup, from barrier to barrier. Returns false if some threads have ended and others wait at a barrier.
inline bool run_workgroup(Index threads) {
  fibers.resize(threads.x * threads.y * threads.z);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    fiber.done = false;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    for (size_t i = 0; i < fibers.size(); i++) {
      on_thread = {unsigned(i) % threads.x, unsigned(i) / threads.x % threads.y, unsigned(i) / threads.x / threads.y};
      running = &fibers[i];
      swapcontext(&scheduler, &fibers[i].context);
    }
    auto ended = std::count_if(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.done; });
    if (ended != 0) return size_t(ended) == fibers.size();
  }
}

inline bool run(const int* grid, const int* threads, std::function<void()> kernel) {
  body = std::move(kernel);
  for (group.z = 0; group.z < unsigned(grid[2]); group.z++)
    for (group.y = 0; group.y < unsigned(grid[1]); group.y++)
      for (group.x = 0; group.x < unsigned(grid[0]); group.x++)
        if (!run_workgroup({unsigned(threads[0]), unsigned(threads[1]), unsigned(threads[2])})) return false;
  return true;
}

}  // namespace on_cpu
