// The product in float32 throughout, on any GPU: a block has 16 rows, and its warps share the columns. Codes of all
// classes become halves in the same registers, so that the multiplication is there once.
#pragma once

#include <device.cuh>

#include "activations.cuh"
#include "codes.cuh"
#include "levels.cuh"
#include "tile.cuh"
#include "warp_parts.cuh"

namespace skim::cuda {

template <LevelKind kTable>
struct Float32 {
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kRows = kMmaRows, kTokens = kMmaTokens;

  using Parts = WarpParts<float, kRows, kWarps>;

  static int SharedBytes(int tokens) {
    const int activations = kWarps * tokens * ActivationTile<float>::kTokenBytes;
    return activations > Parts::Bytes(tokens, 1) ? activations : Parts::Bytes(tokens, 1);
  }

  // A word of codes of the thread's two rows: as fragments (see MultiplyAdd) of all eight codes.
  template <LevelKind kKind, typename Code>
  static SKIM_DEVICE void Decode(const RowTile& tile, int K, int block, int word, uint32_t (&fragments)[8][4]) {
    using RowLevels = Levels<kKind, Code, Place::kCache>;
    constexpr int kBits = Code::kBits, kTogether = RowLevels::kTogether;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int64_t row = tile.first + 8 * h + threadIdx.x % 32 / 4;
      if (row >= tile.run.count) row = tile.run.count - 1;  // computed once more, never stored
      RowLevels levels;
      levels.Prepare(tile.run.codebook, row, nullptr, h);
      uint32_t words[kBits][1], codes[kBits];
      LoadCodes<kBits>(tile.run.codes + row * RowBytes(kBits, K), K, block, word, words);
#pragma unroll
      for (int v = 0; v < kBits; ++v) codes[v] = words[v][0];
#pragma unroll
      for (int i = 0; i < 8 / kTogether; ++i) {
        uint32_t halves[kTogether][2];
        levels.Decode(codes, i, halves);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          const int j = CodeOfStep(kBits, kTogether, i, k);
          fragments[j][h] = halves[k][0], fragments[j][2 + h] = halves[k][1];
        }
      }
    }
  }

  // The products of a warp's columns, to its part of the shared memory.
  static SKIM_DEVICE void Multiply(const RowTile& tile, const Activations<float>& x, char* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    char* of_warp = shared + warp * x.count * ActivationTile<float>::kTokenBytes;
    float sums[2][kTokens] = {};  // of rows g and g + 8
    float token_sum = 0;          // of token g: each token is the work of four threads
    const int blocks = (x.K + kSuperblockColumns - 1) / kSuperblockColumns;
#pragma unroll 1
    for (int block = warp; block < blocks; block += kWarps) {
      const ActivationTile<float> activations(of_warp, block);
      activations.Stage(x, lane, 32);
      CommitCopies();
      WaitForCopies<0>();
      __syncwarp();
#pragma unroll 1
      for (int word = c; word < 8; word += 4) {
        uint32_t fragments[8][4];
        WithLevels<kTable>(tile.run.row_class, [&](auto kind, auto code) __attribute__((always_inline)) {
          Decode<decltype(kind)::value, decltype(code)>(tile, x.K, block, word, fragments);
        });
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int piece = j * (kLanes / 4) + word;
          Add(fragments[j], activations, x.count, piece, sums);
          if (g >= x.count) continue;
          const float4 v = *reinterpret_cast<const float4*>(activations.Piece(g, piece));
          token_sum += v.x + v.y + (v.z + v.w);
        }
      }
      __syncwarp();
    }

    __syncthreads();  // the room of activations is used again
    const Parts parts(shared, x.count, 0);
    float products[4] = {};
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = SumOfRow(sums[h][t]);
        if (t / 2 == c) products[2 * h + t % 2] = sum;
      }
    }
    parts.WriteProducts(0, 0, products);
    token_sum = SumOfRow(token_sum);
    if (c == 0) parts.WriteFact(g, token_sum);
  }

 private:
  // The sum over the four threads of a row, each of which has a quarter of the warp's columns.
  static SKIM_DEVICE float SumOfRow(float sum) {
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    return sum + __shfl_xor_sync(0xffffffff, sum, 2);
  }

  // Adds the products of four columns, a piece of the activations.
  static SKIM_DEVICE void Add(const uint32_t (&fragment)[4], const ActivationTile<float>& activations, int count,
                              int piece, float (&sums)[2][kTokens]) {
    float weights[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[i % 2][i / 2 * 2] = HalfToFloat(fragment[i] & 0xffff);
      weights[i % 2][i / 2 * 2 + 1] = HalfToFloat(fragment[i] >> 16);
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= count) break;
      const float4 x = *reinterpret_cast<const float4*>(activations.Piece(t, piece));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sums[h][t] += weights[h][0] * x.x;
        sums[h][t] += weights[h][1] * x.y;
        sums[h][t] += weights[h][2] * x.z;
        sums[h][t] += weights[h][3] * x.w;
      }
    }
  }
};

template <LevelKind kTable>
__global__ void __launch_bounds__(Float32<kTable>::kThreads, 1)
    Float32Kernel(const DeviceLayer device, const float* x, int64_t M, Epilogue epilogue, float* y) {
  using Kernel = Float32<kTable>;
  const PackedLinear& weights = device.layer.weights;
  const BlockTile tile = FindTile(device.layer, M, Kernel::kRows, Kernel::kTokens);
  char* shared = SharedMemory();
  Kernel::Multiply(
      tile.rows,
      {x + tile.first_token * weights.K, weights.column_scale.data, tile.tokens, static_cast<int>(weights.K)}, shared);
  __syncthreads();
  const int row = tile.rows.first + Kernel::Parts::Row();
  if (row >= tile.rows.run.count) return;
  const int n = OriginalRow(device.layer, tile.rows.run, row);
  const RowOutput<float> output(device, tile.rows.run, row, n, epilogue, y + tile.first_token * weights.N);
  typename Kernel::Parts(shared, tile.tokens, 0)
      .Store(IsAffine(tile.rows.run.row_class), 0, [&](int token, const float (&product)[1], const float (&sum)[1]) {
        output.Store(token, product[0], sum[0]);
      });
}

// `kTable`: the kind of the layer's codebooks.
template <LevelKind kTable>
int LaunchFloat32(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  using Kernel = Float32<kTable>;
  const int64_t blocks = CountTiles(layer.layer, Kernel::kRows) * CeilDiv(M, Kernel::kTokens);
  const int tokens = M < Kernel::kTokens ? static_cast<int>(M) : Kernel::kTokens;
  return Launch(Float32Kernel<kTable>, blocks, Kernel::kThreads, Kernel::SharedBytes(tokens), stream, layer,
                static_cast<const float*>(x), M, epilogue, static_cast<float*>(y));
}

}  // namespace skim::cuda
