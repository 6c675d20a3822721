// Reads and validates the packed weights of a node when its kernel is created.
#pragma once

#include <functional>
#include <string>

#include "skim/ort_abi.h"
#include "skim/packed.h"

namespace skim {

constexpr size_t kWeightInputs = 6;

// Where the host can read `bytes` bytes that the runtime holds at `data`.
using ToHost = std::function<const void*(const void* data, int64_t bytes)>;

// The packed linear that six inputs of a node, from `first` on, and its attributes describe. `prefix` stands before the
// names of what a node has several of. The tensors stay where the runtime holds them, or where `to_host` puts them.
// Throws InvalidArgument, naming the node and the tensor, if an input is no initializer or the format is violated.
PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, size_t first = 1,
                         const std::string& prefix = "", const ToHost& to_host = {});

// "LutMatMul node 'name'", for messages.
std::string NodeText(const OrtApi* api, const OrtKernelInfo* info, const char* op);

// The name of the tensor that is an input of a node.
std::string InputName(const OrtApi* api, const OrtKernelInfo* info, size_t index);

}  // namespace skim
