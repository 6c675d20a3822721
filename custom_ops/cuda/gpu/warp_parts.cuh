// Where the warps of a block share the columns: what each leaves in shared memory, and how it is added up and stored.
#pragma once

#include <device.cuh>

#include "tile.cuh"

namespace skim::cuda {

// Of kTokens tokens with kRows rows, both multiples of a tensor core's.
template <typename Float, int kRows, int kTokens, int kWarps>
class WarpParts {
 public:
  static constexpr int kBytes = kWarps * (ProductTile<kRows>::Floats(kTokens) + kTokens) * 4;

  SKIM_DEVICE explicit WarpParts(char* shared) : parts_(reinterpret_cast<float*>(shared)) {}

  // A thread's part of its warp's products (see MultiplyAdd).
  SKIM_DEVICE void WriteProducts(int row, int token, const float (&d)[4]) const {
    ProductTile<kRows>(Part(threadIdx.x / 32)).Write(row, token, d);
  }

  // The sum of a token's activations in the warp's columns.
  SKIM_DEVICE void WriteTokenSum(int token, float sum) const { Part(threadIdx.x / 32)[kProductFloats + token] = sum; }

  // Adds up the parts of all warps, always in the same order, and stores `count` tokens.
  SKIM_DEVICE void Store(const RowTile& tile, const DeviceLayer& device, int count, Epilogue epilogue, Float* y) const {
    const int row = threadIdx.x % kRows;
    if (tile.first + row >= tile.run.count) return;
    const RowOutput<Float> output(device, tile.run, tile.first + row, epilogue, y);
    for (int token = threadIdx.x / kRows; token < count; token += 32 * kWarps / kRows) {
      float product = 0, sum = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        product += ProductTile<kRows>::Read(Part(i), row, token);
        sum += Part(i)[kProductFloats + token];
      }
      output.Store(token, product, sum);
    }
  }

 private:
  static constexpr int kProductFloats = ProductTile<kRows>::Floats(kTokens);

  SKIM_DEVICE float* Part(int warp) const { return parts_ + warp * (kProductFloats + kTokens); }

  float* parts_;
};

}  // namespace skim::cuda
