// The operators for CUDA alone, handed to the runtime as if they were the CPU's: so it drives their host code, and the
// kernels run under emulation.
#include "../../ort/ops.h"

namespace skim {

void AddOps(const OrtApi* api, const Kernels*, std::list<Op>& ops) {
  AddCudaOps(api, ops);
  for (Op& op : ops) op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
}

int CudaVersion() { return 0; }

}  // namespace skim
