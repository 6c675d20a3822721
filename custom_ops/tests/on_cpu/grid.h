// Runs a grid of blocks on one CPU thread: every GPU thread is a fiber, which pauses where it waits for others.
//
// The environment variable SKIM_CUDA_ORDER says who goes first:
//   forward   blocks, warps and lanes by their numbers; a warp goes on until it waits for other warps (the default);
//   reverse   the same from the last to the first;
//   shuffled  a random order of blocks, and again and again of warps and lanes; the same at every run.
// Results must not depend on it.
//
// SKIM_CUDA_CAPABILITY says what kind of GPU it is: 7.5 (Turing), 8.0 (the default) or 9.0 (Hopper). But for Hopper a
// block has as much shared memory as on the GPU that has least, Turing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace skim::on_cpu {

constexpr unsigned kWarp = 32, kWarpgroup = 128;
constexpr int kPoison = 0xff;  // in every byte: not a number as a float32 or as a float16
constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr int kMultiprocessors = 2;

int Capability();      // 10 times the number
size_t SharedBytes();  // that a block may have

struct Index {
  unsigned x;
};
extern Index thread_index, block_index;  // of the thread that runs

// What threads wait for each other at.
enum class Barrier {
  kNone,
  kEnd,
  kBlock,
  kWarp,
  kShuffle,
  kMultiplyAdd,
  kNumbered,
  kRegisters,
  kFenceMultiplies,
  kMultiplyAddAsync,
  kCommitMultiplies,
  kWaitForMultiplies
};

// All threads of the block, or of the warp, must meet at the same barrier: otherwise the program is aborted.
void MeetBlock();
// When all lanes are there, `complete` is called once with each lane's `part`, in their order, before any goes on.
void MeetWarp(Barrier barrier, void* part, void (*complete)(void* const (&parts)[kWarp]));

// The same for the four warps of a warpgroup, which begins at thread `first`; Hopper only.
void MeetWarpgroup(Barrier barrier, void* part, void (*complete)(unsigned first, void* const (&parts)[kWarpgroup]));
// Barrier 1..15 of the block: whole warps come to it, `count` threads in all, and wait for the others, or do not.
void MeetAtBarrier(int number, int count, bool waits);
// Changes how many registers each thread of a warpgroup has, which waits until so many are free.
void ChangeRegisters(int registers, bool more);

char* SharedMemory();  // of the running block

// The running thread's asynchronous copies to shared memory, of up to 16 bytes each.
void StartCopy(void* to, const void* from, size_t bytes);
void CommitCopies();
void WaitForCopies(size_t pending);

// Accesses that may be to shared memory, for the detection of races (accesses.cpp).
void RecordRead(const void* address, size_t bytes);
void RecordWrite(const void* address, size_t bytes);
// What a warpgroup's multiplication reads, at an offset in shared memory; and the fence before it.
void RecordAsyncRead(unsigned first, size_t offset, size_t bytes);
void RecordFence();

[[noreturn]] void Abort(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Runs `kernel` once for each thread. Returns a cudaError_t.
int RunGrid(int64_t blocks, unsigned threads, size_t shared_bytes, std::function<void()> kernel);

}  // namespace skim::on_cpu
