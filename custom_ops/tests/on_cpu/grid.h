// Runs a grid of blocks on one CPU thread: every GPU thread is a fiber, which pauses where it waits for others.
//
// The environment variable SKIM_CUDA_ORDER says who goes first:
//   forward   blocks, warps and lanes by their numbers; a warp goes on until it waits for other warps (the default);
//   reverse   the same from the last to the first;
//   shuffled  a random order of blocks, and again and again of warps and lanes; the same at every run.
// Results must not depend on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace skim::on_cpu {

constexpr unsigned kWarp = 32;
constexpr int kPoison = 0xff;               // in every byte: not a number as a float32 or as a float16
constexpr size_t kMaxSharedBytes = 232448;  // dynamic shared memory of a block, compute capability 9.0

struct Index {
  unsigned x;
};
extern Index thread_index, block_index;  // of the thread that runs

// What threads wait for each other at.
enum class Barrier { kNone, kEnd, kBlock, kWarp, kShuffle, kMultiplyAdd };

// All threads of the block, or of the warp, must meet at the same barrier: otherwise the program is aborted.
void MeetBlock();
// When all lanes are there, `complete` is called once with each lane's `part`, in their order, before any goes on.
void MeetWarp(Barrier barrier, void* part, void (*complete)(void* const (&parts)[kWarp]));

char* SharedMemory();  // of the running block

// The running thread's asynchronous copies to shared memory, of 16 bytes each.
void StartCopy(void* to, const void* from);
void CommitCopies();
void WaitForCopies(size_t pending);

// Accesses that may be to shared memory, for the detection of races (accesses.cpp).
void RecordRead(const void* address, size_t bytes);
void RecordWrite(const void* address, size_t bytes);

[[noreturn]] void Abort(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Runs `kernel` once for each thread. Returns a cudaError_t.
int RunGrid(unsigned blocks, unsigned threads, size_t shared_bytes, std::function<void()> kernel);

}  // namespace skim::on_cpu
