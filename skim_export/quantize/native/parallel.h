// Rows shared out over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace skim {

// Calls work(make(), task) for every task in 0..tasks-1, with one make() per thread; false if memory runs out. Which
// thread takes a task must not matter for its result. Fewer threads are used where the system does not give as many.
template <typename Make, typename Work>
bool ParallelFor(int64_t tasks, int32_t threads, const Make& make, const Work& work) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto run = [&] {
    try {
      auto state = make();
      for (int64_t task = next++; task < tasks && !failed; task = next++) work(state, task);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  std::vector<std::thread> helpers;
  try {
    const int64_t wanted = std::min<int64_t>(threads, tasks) - 1;
    for (int64_t i = 0; i < wanted; i++) helpers.emplace_back(run);
  } catch (const std::bad_alloc&) {
  } catch (const std::system_error&) {
  }
  run();
  for (std::thread& helper : helpers) helper.join();
  return !failed;
}

}  // namespace skim
