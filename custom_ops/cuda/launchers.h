// Every kernel's launcher, in a file of its own so that they compile side by side. Parameters as in skim/cuda.h; M > 0.
#pragma once

#include "skim/cuda.h"

namespace skim::cuda {

using MatmulLauncher = int(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y,
                           void* stream);

MatmulLauncher Decode8;         // float16, up to 8 tokens a block
MatmulLauncher Decode16;        // float16, up to 16 tokens a block
MatmulLauncher MatmulFloat32;   // float32, up to 8 tokens a block
MatmulLauncher PrefillFloat16;  // float16, up to 64 tokens a block
MatmulLauncher PrefillHopper;   // float16, up to 128 tokens a block; in libraries that have it (SKIM_CUDA_HOPPER)

bool IsHopper();  // whether PrefillHopper runs on the current GPU: of compute capability 9.0, neither more nor less

}  // namespace skim::cuda
