// Kernels that try the emulation itself, for tests/custom_ops/cuda/test_emulation.py: each function launches one.
#include <device.cuh>
#include <warpgroup.cuh>

namespace {

using namespace skim::cuda;

#define TRY extern "C" __attribute__((visibility("default"))) int

template <bool kBfloat16>
__global__ void MultiplyKernel(const uint32_t* a, const uint32_t* b, float* d) {
  const unsigned lane = threadIdx.x;
  uint32_t a_part[4], b_part[2];
  float d_part[4];
  for (int i = 0; i < 4; ++i) a_part[i] = Load(a + lane * 4 + i), d_part[i] = d[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b_part[i] = Load(b + lane * 2 + i);
  (kBfloat16 ? MultiplyAddBfloat16 : MultiplyAdd)(d_part, a_part, b_part);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = d_part[i];
}

// One warp for each block; y [blocks, 32] of sums over the lanes.
__global__ void ShuffleKernel(const float* x, float* y) {
  const unsigned i = blockIdx.x * 32 + threadIdx.x;
  float sum = x[i];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  y[i] = sum;
}

// y = x, 16 bytes for each thread and step, through two stages of shared memory. Each thread reads what another one of
// its block copied. The parameters leave out one thing each.
template <bool kWait, bool kReady, bool kDone>
__global__ void PipelineKernel(const uint4* x, uint4* y, int steps, int threads) {
  const int thread = static_cast<int>(threadIdx.x), other = threads - 1 - thread;
  const auto stages = reinterpret_cast<uint4*>(SharedMemory());
  const auto start = [&](int step) {
    if (step < steps) CopyAsync(stages + step % 2 * threads + thread, x + step * threads + thread);
    CommitCopies();
  };
  start(0);
  for (int step = 0; step < steps; ++step) {
    start(step + 1);
    if constexpr (kWait) WaitForCopies<1>();
    if constexpr (kReady) __syncthreads();
    y[step * threads + other] = stages[step % 2 * threads + other];
    if constexpr (kDone) __syncthreads();
  }
}

// The last thread does something else than the others.
__global__ void DivergentKernel(int others, int last) {
  float value = 1, d[4]{};
  const uint32_t a[4]{}, b[2]{};
  switch (threadIdx.x == 63 ? last : others) {
    case 1:
      return __syncthreads();
    case 2:
      return __syncwarp();
    case 3:
      __shfl_xor_sync(~0u, value, 1);
      return;
    case 4:
      return MultiplyAdd(d, a, b);
  }
}

// Each thread reads what its neighbour writes: the warp's barrier lies between, or the block's, or none.
__global__ void ExchangeKernel(int barrier) {
  const auto values = reinterpret_cast<volatile unsigned*>(SharedMemory());
  values[threadIdx.x] = threadIdx.x;
  if (barrier == 1) __syncthreads();
  if (barrier == 2) __syncwarp();
  const unsigned neighbour = values[threadIdx.x ^ 1];
  if (barrier == 1) __syncthreads();
  if (barrier == 2) __syncwarp();
  values[threadIdx.x] = neighbour;
}

__global__ void SharedKernel(int index, uint8_t* content) { content[threadIdx.x] = SharedMemory()[index]; }

__global__ void CopyKernel(const char* from, int to) { CopyAsync(SharedMemory() + to, from); }

__global__ void Half2Kernel(const uint32_t* a, const uint32_t* b, uint32_t* difference, uint32_t* product) {
  const unsigned i = blockIdx.x * 32 + threadIdx.x;
  difference[i] = SubtractHalf2(a[i], b[i]);
  product[i] = MultiplyHalf2(a[i], b[i]);
}

__global__ void Bfloat2Kernel(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* sum, uint32_t* relu) {
  const unsigned i = blockIdx.x * 32 + threadIdx.x;
  sum[i] = FmaBfloat2(a[i], b[i], c[i]);
  relu[i] = FmaReluBfloat2(a[i], b[i], c[i]);
}

__global__ void RoundKernel(const float* x, uint32_t* y) {
  const unsigned i = blockIdx.x * 32 + threadIdx.x;
  y[i] = FloatsToBfloat2(x[2 * i], x[2 * i + 1]);
}

__global__ void PermuteKernel(uint32_t selector, uint32_t* y) { *y = Permute(0x33221100, 0x77665544, selector); }

// What a warpgroup's kernel leaves out or does too early.
enum class Fault {
  kNone,
  kNoFenceForMultiplies,
  kNoFence,
  kNoFenceAgain,
  kSumsReadEarly,
  kSumsChanged,
  kRegistersChanged,
  kPanelChanged,
  kNoCommit,
  kNoWait,
  kAbsentWarp,
};

// d [64, N] += a [64, 64] b [64, N] by one warpgroup, for N tokens: [thread][N / 2] of d, [step][thread][4] of a, a
// panel of b. The four steps are two groups.
template <bool kBfloat16, int kTokens>
__global__ void WarpgroupKernel(const uint32_t* a, const uint4* b, uint64_t descriptor, float* d, Fault fault) {
  constexpr int kSums = kTokens / 2, kPieces = kTokens * 8 / 128;
  const unsigned thread = threadIdx.x;
  const auto panel = reinterpret_cast<uint4*>(SharedMemory());
  for (int i = 0; i < kPieces; ++i) panel[kPieces * thread + i] = Load(b + kPieces * thread + i);
  if (fault != Fault::kNoFenceForMultiplies) FenceForMultiplies();
  __syncthreads();
  if (fault == Fault::kAbsentWarp && thread / 32 == 3) return;
  float sums[kTokens / 8][4];
  uint32_t fragments[4][4];
  for (int i = 0; i < kSums; ++i) sums[i / 4][i % 4] = d[kSums * thread + i];
  for (int i = 0; i < 16; ++i) fragments[i / 4][i % 4] = Load(a + 512 * (i / 4) + 4 * thread + i % 4);
  if (fault != Fault::kNoFence) FenceMultiplies();
  for (int step = 0; step < 4; ++step) {
    if constexpr (kBfloat16) {
      MultiplyAddAsyncBfloat16(sums, fragments[step], descriptor + 2 * step);
    } else {
      MultiplyAddAsync(sums, fragments[step], descriptor + 2 * step);
    }
    if (step % 2 == 1 && fault != Fault::kNoCommit) CommitMultiplies();
  }
  WaitForMultiplies<1>();
  if (fault == Fault::kNoFenceAgain) {
    fragments[0][0] ^= 1;
    MultiplyAddAsync(sums, fragments[0], descriptor);
  }
  if (fault == Fault::kSumsReadEarly) d[kSums * thread] = sums[0][0];
  if (fault == Fault::kSumsChanged && thread == 77) sums[3][1] = 1;
  if (fault == Fault::kRegistersChanged && thread == 77) fragments[2][3] ^= 1;
  fragments[0][0] = 0;  // its multiplication is done
  if (fault == Fault::kPanelChanged && thread == 77) panel[kPieces * 125].x ^= 1;
  if (fault == Fault::kNoWait) return;
  WaitForMultiplies<0>();
  for (int i = fault == Fault::kSumsReadEarly; i < kSums; ++i) d[kSums * thread + i] = sums[i / 4][i % 4];
}

// Warp 0 tells the others a number by way of barrier 1, `count` of the threads; they do not wait for each other.
__global__ void NumberedKernel(int number, int count, int last_count, bool waits, unsigned* y) {
  const auto value = reinterpret_cast<volatile unsigned*>(SharedMemory());
  const unsigned warp = threadIdx.x / 32;
  if (warp == 0) {
    if (threadIdx.x == 0) *value = 7;
    for (int i = 1; i < 4; ++i) ArriveAtBarrier(number + i - 1, count);
    return;
  }
  const auto barrier = number + static_cast<int>(warp) - 1;
  const int threads = warp == 3 ? last_count : count;
  waits ? WaitAtBarrier(barrier, threads) : ArriveAtBarrier(barrier, threads);
  y[threadIdx.x] = *value;
}

// Of three warpgroups, which begin with 168 registers a thread, two take what the third one gives.
template <int kGiven, int kTaken>
__global__ void RegisterKernel() {
  if (threadIdx.x / 128 == 2) {
    GiveRegisters<kGiven>();
  } else {
    TakeRegisters<kTaken>();
  }
}

// The block's number and the thread's, in the order that the threads run in.
__global__ void OrderKernel(unsigned* order, unsigned* count) {
  for (int time = 0; time < 2; ++time) {
    order[(*count)++] = blockIdx.x * 64 + threadIdx.x;
    __syncthreads();
  }
}

}  // namespace

TRY TryMultiply(const uint32_t* a, const uint32_t* b, float* d) {
  return Launch(MultiplyKernel<false>, 1, 32, 0, nullptr, a, b, d);
}

TRY TryMultiplyBfloat16(const uint32_t* a, const uint32_t* b, float* d) {
  return Launch(MultiplyKernel<true>, 1, 32, 0, nullptr, a, b, d);
}

TRY TryShuffle(unsigned blocks, const float* x, float* y) {
  return Launch(ShuffleKernel, blocks, 32, 0, nullptr, x, y);
}

TRY TryPipeline(int fault, const uint4* x, uint4* y, int steps, int threads) {
  void (*const kernels[])(const uint4*, uint4*, int, int) = {
      PipelineKernel<true, true, true>, PipelineKernel<false, true, true>, PipelineKernel<true, false, true>,
      PipelineKernel<true, true, false>};
  return Launch(kernels[fault], 1, threads, 2 * sizeof(uint4) * threads, nullptr, x, y, steps, threads);
}

TRY TryDivergence(int others, int last) { return Launch(DivergentKernel, 1, 64, 0, nullptr, others, last); }

TRY TryExchange(int barrier) { return Launch(ExchangeKernel, 1, 64, 256, nullptr, barrier); }

TRY TryShared(size_t bytes, int index, uint8_t* content) {
  return Launch(SharedKernel, 1, 32, bytes, nullptr, index, content);
}

TRY TryCopy(const char* from, int to) { return Launch(CopyKernel, 1, 32, 64, nullptr, from, to); }

TRY TryHalf2(unsigned blocks, const uint32_t* a, const uint32_t* b, uint32_t* difference, uint32_t* product) {
  return Launch(Half2Kernel, blocks, 32, 0, nullptr, a, b, difference, product);
}

TRY TryBfloat2(unsigned blocks, const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* sum,
               uint32_t* relu) {
  return Launch(Bfloat2Kernel, blocks, 32, 0, nullptr, a, b, c, sum, relu);
}

TRY TryRound(unsigned blocks, const float* x, uint32_t* y) { return Launch(RoundKernel, blocks, 32, 0, nullptr, x, y); }

TRY TryPermute(uint32_t selector, uint32_t* y) { return Launch(PermuteKernel, 1, 32, 0, nullptr, selector, y); }

TRY TryWarpgroup(bool bfloat16, int tokens, const uint32_t* a, const uint4* b, uint64_t descriptor, float* d,
                 int fault) {
  void (*const kernels[2][2])(const uint32_t*, const uint4*, uint64_t, float*, Fault) = {
      {WarpgroupKernel<false, 64>, WarpgroupKernel<false, 128>},
      {WarpgroupKernel<true, 64>, WarpgroupKernel<true, 128>}};
  return Launch(kernels[bfloat16][tokens / 128], 1, 128, 128 * tokens, nullptr, a, b, descriptor, d,
                static_cast<Fault>(fault));
}

TRY TryNumbered(int number, int count, int last_count, bool waits, unsigned* y) {
  return Launch(NumberedKernel, 1, 128, 4, nullptr, number, count, last_count, waits, y);
}

TRY TryRegisters(int fault) {
  void (*const kernels[])() = {RegisterKernel<56, 224>, RegisterKernel<64, 224>, RegisterKernel<176, 224>,
                               RegisterKernel<100, 200>};
  return Launch(kernels[fault], 1, 384, 0, nullptr);
}

TRY TryOrder(unsigned blocks, unsigned* order, unsigned* count) {
  return Launch(OrderKernel, blocks, 64, 0, nullptr, order, count);
}
