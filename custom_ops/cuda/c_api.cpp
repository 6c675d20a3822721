// The kernels for callers that are not C++: the same contract (skim/cuda.h), with a layer of plain fields.
#include "skim/cuda.h"

#define SKIM_EXPORT extern "C" __attribute__((visibility("default")))

// A packed linear; everything in it is on the device, and may be null where it has no elements. What is stored of each
// class of rows lies apart, so that all of it can be aligned.
struct SkimCudaLayer {
  int64_t N, K;
  int64_t rows_per_class[skim::kClasses];
  int64_t int8_codebook;                      // 1, or 0 for float16
  const uint8_t* codes[skim::kClasses];       // aligned to 16 bytes
  const void* codebook[skim::kClasses];       // aligned to 16 bytes
  const uint16_t* row_scale[skim::kClasses];  // float16
  const int32_t* destination;                 // [N] original row of each stored row, or null: the same
  const int32_t* stored;                      // [N] the inverse
  const uint16_t* column_scale;               // [K] float16, at most 1, in units of column_unit
  const float* bias;                          // [N]
  double column_unit;
  int64_t integers;  // 1 if activations may be rounded to integers, or 0
};

namespace {

skim::cuda::DeviceLayer ToLayer(const SkimCudaLayer& from) {
  skim::cuda::DeviceLayer to{};
  skim::PackedLinear& weights = to.layer.weights;
  weights.N = from.N;
  weights.K = from.K;
  weights.codebook_type = from.int8_codebook ? skim::CodebookType::kInt8 : skim::CodebookType::kFloat16;
  weights.column_scale = {from.column_scale, from.column_scale ? from.K : 0};
  weights.bias = {from.bias, from.bias ? from.N : 0};
  int64_t first = 0;
  for (int c = 0; c < skim::kClasses; ++c) {
    const int64_t count = weights.rows_per_class[c] = from.rows_per_class[c];
    if (count == 0) continue;
    to.layer.runs[to.layer.run_count++] = {c, first, count, from.codes[c], from.codebook[c], from.row_scale[c]};
    first += count;
  }
  to.layer.destination = from.destination;
  to.stored = from.stored;
  to.column_unit = static_cast<float>(from.column_unit);
  to.integers = from.integers != 0;
  return to;
}

}  // namespace

// `type` is 1 (float32), 10 (float16) or 16 (bfloat16), `epilogue` a skim::cuda::Epilogue.
SKIM_EXPORT int SkimCudaMatmul(const SkimCudaLayer* layer, const void* x, int type, int64_t M, int epilogue, void* y,
                               void* stream) {
  return skim::cuda::Matmul(ToLayer(*layer), x, static_cast<skim::FloatType>(type), M,
                            static_cast<skim::cuda::Epilogue>(epilogue), y, stream);
}

SKIM_EXPORT int SkimCudaGather(const SkimCudaLayer* layer, const int64_t* ids, int64_t count, void* y, int type,
                               void* stream) {
  return skim::cuda::Gather(ToLayer(*layer), ids, count, y, static_cast<skim::FloatType>(type), stream);
}
