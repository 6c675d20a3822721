// Rows of W: nothing but codes and levels, so one plain kernel serves all classes.
#pragma once

#include <device.cuh>

#include "levels.cuh"
#include "tile.cuh"

namespace skim::cuda {

constexpr int kGatherThreads = 128;

// Row `id` -> y [K], by the threads of a block; each decodes words of codes, 32 columns.
template <typename Float>
SKIM_DEVICE void GatherRow(const DeviceLayer& device, int64_t id, Float* y) {
  const PackedLinear& weights = device.layer.weights;
  const int K = static_cast<int>(weights.K);
  if (id < 0 || id >= weights.N) {
    for (int k = threadIdx.x; k < K; k += kGatherThreads) StoreFloat(y + k, NAN);
    return;
  }
  const int64_t stored = device.stored ? Load(device.stored + id) : id;
  const RowRun* run = device.layer.runs;
  while (stored >= run->first + run->count) ++run;
  const int64_t row = stored - run->first;
  const int bits = ClassBits(run->row_class), memory = ClassMemory(run->row_class);
  const int entries = static_cast<int>(CodebookEntries(run->row_class));
  const LevelKind kind = KindOf(run->row_class, weights.codebook_type);
  const RowScale scale = LoadRowScale(kind, *run, row, device.column_unit);
  const uint8_t* codes = run->codes + row * RowBytes(bits, K);
  for (int unit = threadIdx.x; unit < (K + 31) / 32; unit += kGatherThreads) {
    const int block = unit / 8, lanes = (block + 1) * kSuperblockColumns <= K ? kLanes : TailLanes(K);
    const uint8_t* word = codes + block * bits * kLanes + unit % 8 * 4;
    for (int j = 0; j < 8; ++j) {
      uint32_t four = 0;  // codes j of the word's lanes, or their windows
      for (int i = 0; i < LevelFieldCount(bits, memory, j); ++i) {
        const Field f = LevelField(bits, memory, j, i);
        const uint32_t vector = Load(reinterpret_cast<const uint32_t*>(word + f.vector * lanes));
        four |= (vector >> f.bit & ((1u << f.length) - 1) * 0x01010101u) << f.code_bit;
      }
      const int column = block * kSuperblockColumns + j * lanes + unit % 8 * 4;
      for (int i = 0; i < 4 && column + i < K; ++i) {
        const int code = four >> 8 * i & 0xff;
        const bool upper = memory > 0 && code >= entries;  // of the levels, which are the lower half's negatives
        const int64_t entry = row * entries + (upper ? 2 * entries - 1 - code : code);
        float level;
        if (kind == LevelKind::kAffine) {
          level = static_cast<float>(code - (1 << (bits - 1)));
        } else if (kind == LevelKind::kTableInt8) {
          level = Load(static_cast<const int8_t*>(run->codebook) + entry);
        } else {
          level = HalfToFloat(Load(static_cast<const Half*>(run->codebook) + entry));
        }
        const float weight = scale.offset + scale.scale * (upper ? -level : level);
        StoreFloat(y + column + i,
                   weights.column_scale.size ? weight * LoadFloat(weights.column_scale.data + column + i) : weight);
      }
    }
  }
}

// A block has one id.
template <typename Float>
__global__ void __launch_bounds__(kGatherThreads, 8)
    GatherKernel(const DeviceLayer device, const int64_t* ids, Float* y) {
  if constexpr (kIsSupported<Float>) {
    GatherRow(device, Load(ids + blockIdx.x), y + static_cast<int64_t>(blockIdx.x) * device.layer.weights.K);
  }
}

}  // namespace skim::cuda
