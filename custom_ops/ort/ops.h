// The operators of the domain ai.skim, as ONNX Runtime takes them.
#pragma once

#include <list>

#include "skim/kernels.h"
#include "skim/ort_abi.h"

namespace skim {

// An operator for one combination of types, with what its callbacks need.
struct Op : OrtCustomOp {
  const OrtApi* api;
  const Kernels* kernels;
  int32_t activation_type;  // of X; of the ids for LutGather
  int32_t codebook_type;
};

// The fields that do not depend on the operator: inputs 1..6, one output, memory on the CPU.
Op MakeOp(const OrtApi* api, const Kernels* kernels, int32_t activation_type, int32_t codebook_type);

// Sets the shape of output 0: that of input 0, with its last dimension replaced by (`replace_last`) or followed by the
// value of the attribute `attribute`. Leaves it unknown if the input's shape is.
void InferShape(const OrtApi* api, OrtShapeInferContext* context, const char* attribute, bool replace_last);

// Append all combinations of types. A list, since the runtime keeps pointers to its elements.
void AddLutMatMul(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);
void AddLutGather(const OrtApi* api, const Kernels* kernels, std::list<Op>& ops);

}  // namespace skim
