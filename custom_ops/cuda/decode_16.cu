// Up to 16 tokens of float16 a block, of 32 rows; where tables of that many rows leave too little room, of 16.
#include "gpu/decode.cuh"
#include "launchers.h"

namespace skim::cuda {

int Decode16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream) {
  const int64_t wanted = M < kMmaTokens ? M : kMmaTokens;
  const bool fits = TokensThatFit<2, 2>(layer.layer, M) >= wanted;
  return (fits ? LaunchDecode<2, 2> : Decode8)(layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
