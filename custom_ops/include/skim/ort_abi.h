// The part of ONNX Runtime's C ABI that the operators use, declared by hand: no runtime headers are needed to build.
//
// The ABI is append-only: `OrtApi` is a table of function pointers that only grows, so a slot keeps its number, and
// `OrtCustomOp` is read up to the version written into it. API 18 (ONNX Runtime 1.18) is the oldest that has all slots
// named here; a runtime that is newer serves it unchanged.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtOpAttr;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtApi;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null if the runtime is older than `version`
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;  // the API version that the fields below were written for
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);  // null: CPU
  int32_t (*GetInputType)(const OrtCustomOp*, size_t);          // an ONNX element type
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int32_t (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int32_t (*GetInputCharacteristic)(const OrtCustomOp*, size_t);  // 0 required, 1 optional, 2 variadic
  int32_t (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int32_t (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

}  // extern "C"

static_assert(sizeof(void*) != 8 || sizeof(OrtCustomOp) == 208, "OrtCustomOp of API 18 has 208 bytes");

namespace skim::abi {

constexpr uint32_t kApiVersion = 18;

enum ErrorCode { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };

// ONNX element types (TensorProto.DataType); ONNX Runtime uses the same numbers.
enum ElementType : int32_t {
  kUndefined = 0,
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16
};

constexpr int32_t kRequired = 0;
constexpr int32_t kVariadic = 2;
// Where an input is read: in the memory of the execution provider, or on the CPU whatever the provider.
constexpr int32_t kProviderMemory = 0;
constexpr int32_t kCpuMemory = -2;
constexpr int kAttributeInt = 1;

// A slot of OrtApi: its number and the signature of the function in it.
template <int kSlot, typename Function>
struct Slot;

template <int kSlot, typename Result, typename... Arguments>
struct Slot<kSlot, Result(Arguments...)> {
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    using Pointer = Result (*)(Arguments...);
    return reinterpret_cast<const Pointer*>(api)[kSlot](arguments...);
  }
};

constexpr Slot<0, OrtStatus*(ErrorCode, const char*)> CreateStatus;
constexpr Slot<26, OrtStatus*(const char* domain, OrtCustomOpDomain**)> CreateCustomOpDomain;
constexpr Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add;
constexpr Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain;
constexpr Slot<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData;
constexpr Slot<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)> CreateTensorTypeAndShapeInfo;
constexpr Slot<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int32_t)> SetTensorElementType;
constexpr Slot<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)> SetDimensions;
constexpr Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int32_t*)> GetTensorElementType;
constexpr Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)> GetDimensionsCount;
constexpr Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)> GetDimensions;
constexpr Slot<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)> GetSymbolicDimensions;
constexpr Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> GetTensorTypeAndShape;
constexpr Slot<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64;
constexpr Slot<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> KernelContext_GetInput;
constexpr Slot<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t* shape, size_t rank, OrtValue**)>
    KernelContext_GetOutput;
constexpr Slot<93, void(OrtStatus*)> ReleaseStatus;
constexpr Slot<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo;
constexpr Slot<163, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*, size_t*)> KernelInfoGetAttributeArray_int64;
constexpr Slot<193, OrtStatus*(const OrtKernelContext*, void** stream)> KernelContext_GetGPUComputeStream;
constexpr Slot<232, OrtStatus*(const OrtKernelInfo*, size_t, char*, size_t*)> KernelInfo_GetInputName;
constexpr Slot<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)> KernelInfo_GetNodeName;
constexpr Slot<249, OrtStatus*(const OrtKernelInfo*, size_t, int* is_constant, const OrtValue**)>
    KernelInfoGetConstantInput_tensor;
constexpr Slot<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>
    ShapeInferContext_GetInputTypeShape;
constexpr Slot<269, OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>
    ShapeInferContext_GetAttribute;
constexpr Slot<270, OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>
    ShapeInferContext_SetOutputTypeShape;
constexpr Slot<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, size_t)> SetSymbolicDimensions;
constexpr Slot<272, OrtStatus*(const OrtOpAttr*, int type, void* data, size_t bytes, size_t* written)> ReadOpAttr;
constexpr Slot<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t total, size_t batches, void*)>
    KernelContext_ParallelFor;

}  // namespace skim::abi
