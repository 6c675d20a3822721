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

#include "barriers.h"
#include "copies.h"
#include "fiber.h"
#include "multiplies.h"
#include "races.h"

namespace skim::on_cpu {

Index thread_index, block_index;

namespace {

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9;  // of cudaError_t
constexpr unsigned kMaxThreads = 1024;
constexpr int kRegisters = 65536;  // of a multiprocessor

void RunThread();

struct Thread {
  Fiber fiber{RunThread};
  Barrier at = Barrier::kNone;
  void* part = nullptr;
  void (*complete)(void* const (&parts)[kWarp]) = nullptr;
  void (*complete_group)(unsigned first, void* const (&parts)[kWarpgroup]) = nullptr;
  Copies copies;
};

std::deque<Thread> threads;  // as many as any block had; their stacks are kept
std::function<void()> body;
std::unique_ptr<char[]> shared;
size_t shared_size;
Races races;
Barriers barriers;
std::vector<int> registers;  // of a thread of each warpgroup
int free_registers;          // that warpgroups have given: in units of one for each thread of a warpgroup

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
    case Barrier::kNumbered:
      return "waits at a numbered barrier";
    case Barrier::kRegisters:
      return "waits for registers";
    case Barrier::kFenceMultiplies:
      return "waits at FenceMultiplies";
    case Barrier::kMultiplyAddAsync:
      return "waits at MultiplyAddAsync";
    case Barrier::kCommitMultiplies:
      return "waits at CommitMultiplies";
    case Barrier::kWaitForMultiplies:
      return "waits at WaitForMultiplies";
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

void GoOn(unsigned first, unsigned count) {
  for (unsigned i = first; i < first + count; ++i) threads[i].at = Barrier::kNone;
}

struct NumberedPart {
  int number, count;
  bool waits;
};

// Returns whether the warp can go on.
bool ComeToBarrier(unsigned first) {
  const auto part = [](unsigned thread) { return *static_cast<NumberedPart*>(threads[thread].part); };
  const NumberedPart mine = part(first);
  for (unsigned i = first; i < first + kWarp; ++i) {
    if (part(i).number == mine.number && part(i).count == mine.count && part(i).waits == mine.waits) continue;
    Abort("block %u: threads %u and %u come to different barriers", block_index.x, first, i);
  }
  const std::vector<unsigned> released = barriers.Arrive(first / kWarp, mine.number, mine.count, mine.waits, races);
  if (!mine.waits) GoOn(first, kWarp);
  for (unsigned warp : released) GoOn(warp * kWarp, kWarp);
  return threads[first].at == Barrier::kNone;
}

struct RegisterPart {
  int registers;
  bool more;
};

// Whether a warpgroup can have the registers that it waits for. A block has no more than it was launched with.
bool GetRegisters(unsigned group, const RegisterPart& wanted) {
  const int more = wanted.registers - registers[group];
  if (wanted.more ? more < 0 : more > 0) {
    Abort("%d registers in place of %d are not %s", wanted.registers, registers[group], wanted.more ? "more" : "fewer");
  }
  if (more > free_registers) return false;
  registers[group] = wanted.registers;
  free_registers -= more;
  return true;
}

// Completes what a warpgroup does together, if all its warps are there. Returns whether it can go on.
bool CompleteWarpgroup(unsigned first, Barrier place) {
  void* parts[kWarpgroup];
  for (unsigned i = 0; i < kWarpgroup; ++i) {
    if (threads[first + i].at != place) return false;
    parts[i] = threads[first + i].part;
  }
  if (place == Barrier::kRegisters) {
    if (!GetRegisters(first / kWarpgroup, *static_cast<RegisterPart*>(parts[0]))) return false;
  } else {
    threads[first].complete_group(first, parts);
  }
  GoOn(first, kWarpgroup);
  return true;
}

// Runs a warp's lanes until all wait or have ended. Returns whether the warp can go on without the others.
bool RunWarp(unsigned first, Order& order) {
  if (const Barrier waits = MeetingPlace(first, kWarp); waits != Barrier::kNone) {
    return waits == Barrier::kRegisters && CompleteWarpgroup(first / kWarpgroup * kWarpgroup, waits);
  }
  for (unsigned lane : order.Of(kWarp)) {
    thread_index.x = first + lane;
    Running().fiber.Resume();
  }
  const Barrier place = MeetingPlace(first, kWarp);
  if (place == Barrier::kBlock || place == Barrier::kEnd) return false;
  if (place == Barrier::kNumbered) return ComeToBarrier(first);
  if (place >= Barrier::kRegisters) return CompleteWarpgroup(first / kWarpgroup * kWarpgroup, place);
  void* parts[kWarp];
  for (unsigned lane = 0; lane < kWarp; ++lane) parts[lane] = threads[first + lane].part;
  GoOn(first, kWarp);
  if (place == Barrier::kWarp) races.PassWarp(first / kWarp);
  threads[first].complete(parts);
  return true;
}

void RunBlock(unsigned count, Order& order) {
  races.Begin();
  Barrier place;
  registers.assign(count / kWarpgroup, kRegisters / static_cast<int>(count) / 8 * 8);
  free_registers = 0;
  do {
    races.PassBlock();
    GoOn(0, count);
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
    for (unsigned first = 0; first + kWarpgroup <= count; first += kWarpgroup) {
      if (threads[first].at >= Barrier::kRegisters) MeetingPlace(first, kWarpgroup);
    }
    place = MeetingPlace(0, count);
  } while (place == Barrier::kBlock);
  if (place != Barrier::kEnd) Abort("block %u: every thread %s", block_index.x, Name(place));
  barriers.End();
  EndMultiplies();
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

void MeetWarpgroup(Barrier barrier, void* part, void (*complete)(unsigned first, void* const (&parts)[kWarpgroup])) {
  if (Capability() != 90) Abort("a warpgroup's instruction on a GPU that is no Hopper");
  if (thread_index.x / kWarpgroup >= registers.size()) Abort("thread %u is in no whole warpgroup", thread_index.x);
  Thread& thread = Running();
  thread.at = barrier;
  thread.part = part;
  thread.complete_group = complete;
  Fiber::Pause();
}

void MeetAtBarrier(int number, int count, bool waits) {
  NumberedPart part{number, count, waits};
  MeetWarp(Barrier::kNumbered, &part, nullptr);
}

void ChangeRegisters(int wanted, bool more) {
  if (wanted < 24 || wanted > 256 || wanted % 8 != 0) Abort("%d registers: no multiple of 8 in 24..256", wanted);
  RegisterPart part{wanted, more};
  MeetWarpgroup(Barrier::kRegisters, &part, nullptr);
}

int Capability() {
  const char* number = std::getenv("SKIM_CUDA_CAPABILITY");
  if (number == nullptr || std::strcmp(number, "8.0") == 0) return 80;
  if (std::strcmp(number, "7.5") == 0) return 75;
  if (std::strcmp(number, "9.0") != 0) Abort("SKIM_CUDA_CAPABILITY=%s: must be 7.5, 8.0 or 9.0", number);
  return 90;
}

size_t SharedBytes() { return Capability() == 90 ? 232448 : 65536; }

char* SharedMemory() { return shared.get(); }

void StartCopy(void* to, const void* from, size_t bytes) {
  const auto offset = static_cast<const char*>(to) - shared.get();
  if (!IsShared(to, bytes)) {
    Abort("thread %u: CopyAsync to byte %td of %zu of shared memory", thread_index.x, offset, shared_size);
  }
  for (const void* address : {static_cast<const void*>(to), from}) {
    if (reinterpret_cast<uintptr_t>(address) % bytes == 0) continue;
    Abort("thread %u: CopyAsync %s %p, which is no multiple of %zu", thread_index.x, address == to ? "to" : "from",
          address, bytes);
  }
  RecordWrite(to, bytes);
  Running().copies.Start(to, from, bytes);
}

void CommitCopies() { Running().copies.Commit(); }

void WaitForCopies(size_t pending) { Running().copies.Wait(pending); }

void RecordRead(const void* address, size_t bytes) {
  if (IsShared(address, bytes)) races.Read(thread_index.x, static_cast<const char*>(address) - shared.get(), bytes);
}

void RecordWrite(const void* address, size_t bytes) {
  if (IsShared(address, bytes)) races.Write(thread_index.x, static_cast<const char*>(address) - shared.get(), bytes);
}

void RecordAsyncRead(unsigned first, size_t offset, size_t bytes) {
  if (offset > shared_size || shared_size - offset < bytes) {
    Abort("block %u: a multiplication reads byte %zu of %zu of shared memory", block_index.x, offset + bytes - 1,
          shared_size);
  }
  for (unsigned warp = 0; warp < kWarpgroup / kWarp; ++warp) races.ReadAsync(first + warp * kWarp, offset, bytes);
}

void RecordFence() { races.Fence(thread_index.x); }

int RunGrid(int64_t blocks, unsigned thread_count, size_t shared_bytes, std::function<void()> kernel) {
  if (shared_bytes > SharedBytes() || blocks > kMaxBlocks) return kInvalidValue;
  if (blocks == 0 || blocks > INT32_MAX || thread_count == 0 || thread_count > kMaxThreads) {
    return kInvalidConfiguration;
  }
  if (thread_count % kWarp != 0) Abort("%u threads are no whole warps", thread_count);
  Order order;
  while (threads.size() < thread_count) threads.emplace_back();
  body = std::move(kernel);
  shared.reset(new char[shared_bytes]);
  shared_size = shared_bytes;
  races.Reserve(shared_bytes, thread_count / kWarp);
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
