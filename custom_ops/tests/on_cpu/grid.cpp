#include "grid.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "copies.h"
#include "fiber.h"
#include "races.h"

namespace skim::on_cpu {

Index thread_index, block_index;

namespace {

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9;  // of cudaError_t
constexpr unsigned kMaxThreads = 1024;

void RunThread();

struct Thread {
  Fiber fiber{RunThread};
  Barrier at = Barrier::kNone;
  void* part = nullptr;
  void (*complete)(void* const (&parts)[kWarp]) = nullptr;
  Copies copies;
};

std::deque<Thread> threads;  // as many as any block had; their stacks are kept
std::function<void()> body;
std::unique_ptr<char[]> shared;
size_t shared_size;
Races races;

bool IsShared(const void* address, size_t bytes) {
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(shared.get());
  return offset < shared_size && shared_size - offset >= bytes;
}

Thread& Running() { return threads[thread_index.x]; }

void RunThread() {
  body();
  Running().at = Barrier::kEnd;
}

const char* Name(Barrier barrier) {
  switch (barrier) {
    case Barrier::kNone:
      return "goes on";
    case Barrier::kEnd:
      return "has ended";
    case Barrier::kBlock:
      return "waits at __syncthreads";
    case Barrier::kWarp:
      return "waits at __syncwarp";
    case Barrier::kShuffle:
      return "waits at __shfl_xor_sync";
    case Barrier::kMultiplyAdd:
      return "waits at MultiplyAdd";
  }
  return "";
}

class Order {
 public:
  Order() {
    const char* name = std::getenv("SKIM_CUDA_ORDER");
    name_ = name ? name : "forward";
    if (name_ != "forward" && name_ != "reverse" && name_ != "shuffled") {
      Abort("SKIM_CUDA_ORDER=%s: must be forward, reverse or shuffled", name);
    }
  }

  bool shuffled() const { return name_ == "shuffled"; }

  // 0..count-1 in the order that they shall run in.
  std::vector<unsigned> Of(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (name_ == "reverse") std::reverse(order.begin(), order.end());
    if (shuffled()) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

 private:
  std::string name_;
  std::mt19937 random_{1};
};

// Where all of threads first..first+count-1 are; none of them goes on.
Barrier MeetingPlace(unsigned first, unsigned count) {
  for (unsigned i = first; i < first + count; ++i) {
    if (threads[i].at == threads[first].at) continue;
    Abort("block %u: thread %u %s, but thread %u %s", block_index.x, first, Name(threads[first].at), i,
          Name(threads[i].at));
  }
  return threads[first].at;
}

// Runs a warp's lanes until all wait or have ended. Returns whether the warp can go on without the others.
bool RunWarp(unsigned first, Order& order) {
  if (MeetingPlace(first, kWarp) != Barrier::kNone) return false;
  for (unsigned lane : order.Of(kWarp)) {
    thread_index.x = first + lane;
    Running().fiber.Resume();
  }
  const Barrier place = MeetingPlace(first, kWarp);
  if (place == Barrier::kBlock || place == Barrier::kEnd) return false;
  void* parts[kWarp];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    parts[lane] = threads[first + lane].part;
    threads[first + lane].at = Barrier::kNone;
  }
  if (place == Barrier::kWarp) races.PassWarp(first / kWarp);
  threads[first].complete(parts);
  return true;
}

void RunBlock(unsigned count, Order& order) {
  do {
    races.PassBlock();
    for (unsigned i = 0; i < count; ++i) threads[i].at = Barrier::kNone;
    bool moved;
    do {
      moved = false;
      for (unsigned warp : order.Of(count / kWarp)) {
        while (RunWarp(warp * kWarp, order)) {
          moved = true;
          if (order.shuffled()) break;  // the next warp's turn
        }
      }
    } while (moved);
  } while (MeetingPlace(0, count) == Barrier::kBlock);
}

}  // namespace

void Abort(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "CUDA on the CPU: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  va_end(arguments);
  std::abort();
}

void MeetBlock() {
  Running().at = Barrier::kBlock;
  Fiber::Pause();
}

void MeetWarp(Barrier barrier, void* part, void (*complete)(void* const (&parts)[kWarp])) {
  Thread& thread = Running();
  thread.at = barrier;
  thread.part = part;
  thread.complete = complete;
  Fiber::Pause();
}

char* SharedMemory() { return shared.get(); }

void StartCopy(void* to, const void* from) {
  const auto offset = static_cast<const char*>(to) - shared.get();
  if (!IsShared(to, Copies::kBytes)) {
    Abort("thread %u: CopyAsync to byte %td of %zu of shared memory", thread_index.x, offset, shared_size);
  }
  for (const void* address : {static_cast<const void*>(to), from}) {
    if (reinterpret_cast<uintptr_t>(address) % Copies::kBytes == 0) continue;
    Abort("thread %u: CopyAsync %s %p, which is no multiple of 16", thread_index.x, address == to ? "to" : "from",
          address);
  }
  RecordWrite(to, Copies::kBytes);
  Running().copies.Start(to, from);
}

void CommitCopies() { Running().copies.Commit(); }

void WaitForCopies(size_t pending) { Running().copies.Wait(pending); }

void RecordRead(const void* address, size_t bytes) {
  if (IsShared(address, bytes)) races.Read(thread_index.x, static_cast<const char*>(address) - shared.get(), bytes);
}

void RecordWrite(const void* address, size_t bytes) {
  if (IsShared(address, bytes)) races.Write(thread_index.x, static_cast<const char*>(address) - shared.get(), bytes);
}

int RunGrid(unsigned blocks, unsigned thread_count, size_t shared_bytes, std::function<void()> kernel) {
  if (shared_bytes > kMaxSharedBytes) return kInvalidValue;
  if (blocks == 0 || blocks > INT32_MAX || thread_count == 0 || thread_count > kMaxThreads) {
    return kInvalidConfiguration;
  }
  if (thread_count % kWarp != 0) Abort("%u threads are no whole warps", thread_count);
  Order order;
  while (threads.size() < thread_count) threads.emplace_back();
  body = std::move(kernel);
  shared.reset(new char[shared_bytes]);
  shared_size = shared_bytes;
  races.Reserve(shared_bytes);
  for (unsigned block : order.Of(blocks)) {
    block_index.x = block;
    std::memset(shared.get(), kPoison, shared_bytes);
    RunBlock(thread_count, order);
    for (unsigned i = 0; i < thread_count; ++i) threads[i].copies.Drop();
  }
  shared.reset();
  shared_size = 0;
  return 0;
}

}  // namespace skim::on_cpu
