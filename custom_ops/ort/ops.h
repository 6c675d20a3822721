// The operators, as ONNX Runtime takes them: those of the domain ai.skim, and one of ai.skim.measure.
#pragma once

#include <list>

#include "api.h"
#include "skim/kernels.h"
#include "skim/ort_abi.h"

namespace skim {

// An operator for one combination of types, with what its callbacks need.
struct Op : OrtCustomOp {
  const char* domain;
  const OrtApi* api;
  const Kernels* kernels;   // of the CPU; null for an operator of the CUDA execution provider
  int32_t activation_type;  // of X; of the ids for LutGather
  int32_t codebook_type;
  size_t first_weight;  // inputs that stand before the weights
};

// The fields that most operators share: the domain ai.skim, one input and the six of a packed linear, one output, and
// where they run. Weights are read on the CPU everywhere.
Op MakeOp(const OrtApi* api, const Kernels* kernels, int32_t activation_type, int32_t codebook_type);

// The type of an input as `MakeOp` has it: that of the activations before the weights, the format's from there on.
int32_t InputType(const OrtCustomOp* op, size_t index);

// The callbacks of a kernel class that is made from (op, api, info) and has a Run(context).
template <typename Kernel>
void SetKernel(Op& op) {
  op.CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return Guarded(api, [&] { *kernel = new Kernel(*static_cast<const Op*>(op), api, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return static_cast<const Kernel*>(kernel)->Run(context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

// An integer attribute of the node whose output is inferred.
int64_t InferenceAttribute(const OrtApi* api, const OrtShapeInferContext* context, const char* name);

// Sets type and shape of output 0: the shape of input 0, with `last` in place of its last dimension (`replace_last`) or
// after it. Does nothing if the input's shape is unknown: the type and shape that the model declares hold then.
void InferOutput(const OrtApi* api, OrtShapeInferContext* context, int32_t type, int64_t last, bool replace_last);

// Append an operator for all combinations of types. A list, since the runtime keeps pointers to its elements.
void AddLutMatMul(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);
void AddLutSwiglu(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);
void AddLutGather(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);
void AddLutMoe(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);
void AddCudaOps(const OrtApi* api, std::list<Op>& ops);                             // but for LutMoe
void AddReadMemory(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);  // for measurements

// Appends all operators of this library.
void AddOps(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);

// The version of CUDA, such as 13000, that the operators for its execution provider are built with; 0 if there are
// none.
int CudaVersion();

}  // namespace skim
