// Every kernel's launcher, in a file of its own so that they compile side by side. Parameters as in skim/cuda.h; M > 0.
#pragma once

#include "skim/cuda.h"

namespace skim::cuda {

// Kernels for bfloat16 are empty where the device has none.
inline bool IsSupported(FloatType type) {
  return type != FloatType::kBfloat16 || CurrentGpu().capability >= kAmpereCapability;
}
constexpr int kNotSupported = 801;  // cudaErrorNotSupported

using MatmulLauncher = int(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y,
                           void* stream);

MatmulLauncher Decode8;          // float16, up to 8 tokens a block
MatmulLauncher Decode16;         // float16, up to 16 tokens a block
MatmulLauncher PrefillFloat16;   // up to 64 tokens a block
MatmulLauncher Decode8Bfloat16;  // the same of bfloat16
MatmulLauncher Decode16Bfloat16;
MatmulLauncher PrefillBfloat16;
MatmulLauncher MatmulFloat32;  // float32, up to 8 tokens a block
MatmulLauncher PrefillHopper;  // float16, up to 128 tokens a block; in libraries that have it (SKIM_CUDA_HOPPER)
MatmulLauncher PrefillHopperBfloat16;

}  // namespace skim::cuda
