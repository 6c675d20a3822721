// Reads and validates the packed weights of a node when its kernel is created.
#pragma once

#include <string>

#include "skim/ort_abi.h"
#include "skim/packed.h"

namespace skim {

// The packed linear that inputs 1..6 and the attributes of a node describe. The tensors stay where the runtime holds
// them. Throws InvalidArgument, naming the node and the tensor, if an input is no initializer or the format is
// violated.
PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node);

// "LutMatMul node 'name'", for messages.
std::string NodeText(const OrtApi* api, const OrtKernelInfo* info, const char* op);

}  // namespace skim
