#include "ops.h"

#ifdef SKIM_CUDA
#include <cuda_runtime_api.h>
#endif

namespace skim {

void AddOps(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops) {
  AddLutMatMul(api, kernels, ops);
  AddLutSwiglu(api, kernels, ops);
  AddLutGather(api, kernels, ops);
  AddLutMoe(api, kernels, ops);
  AddReadMemory(api, kernels, ops);
#ifdef SKIM_CUDA
  AddCudaOps(api, ops);
#endif
}

int CudaVersion() {
#ifdef SKIM_CUDA
  return CUDART_VERSION;
#else
  return 0;
#endif
}

}  // namespace skim
