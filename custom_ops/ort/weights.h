// Reads and validates the packed weights of a node when its kernel is created.
#pragma once

#include <functional>
#include <string>

#include "api.h"
#include "skim/ort_abi.h"
#include "skim/packed.h"

namespace skim {

constexpr size_t kWeightInputs = 6;

// Where the host can read `bytes` bytes that the runtime holds at `data`.
using ToHost = std::function<const void*(const void* data, int64_t bytes)>;

// What `read` returns; the name of the node goes in front of the message of an InvalidArgument.
template <typename Read>
auto Named(const std::string& node, Read&& read) {
  try {
    return read();
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(node + ": " + error.what());
  }
}

// Rows and columns of a packed linear.
struct Shape {
  int64_t N, K;
};

// An integer attribute of a node. Throws InvalidArgument, without the node, if it is missing.
int64_t ReadAttribute(const OrtApi* api, const OrtKernelInfo* info, const char* name);

// The packed linear of a shape that six inputs of a node, from `first` on, and its attributes describe. `prefix` stands
// before the names of what a node has several of. The tensors stay where the runtime holds them, or where `to_host`
// puts them. Throws InvalidArgument, naming the node and the tensor, if an input is no initializer or the format is
// violated.
PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, Shape shape,
                         size_t first, const std::string& prefix, const ToHost& to_host = {});

// The same with the attributes N and K for its shape.
PackedLinear ReadWeights(const OrtApi* api, const OrtKernelInfo* info, const std::string& node, size_t first = 1,
                         const std::string& prefix = "", const ToHost& to_host = {});

// "LutMatMul node 'name'", for messages.
std::string NodeText(const OrtApi* api, const OrtKernelInfo* info, const char* op);

// The name of the tensor that is an input of a node.
std::string InputName(const OrtApi* api, const OrtKernelInfo* info, size_t index);

}  // namespace skim
