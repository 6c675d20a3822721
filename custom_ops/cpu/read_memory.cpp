// The loop of `SumWords`. Vectors are those that every CPU of the architecture has: what takes time is memory.
#include "skim/read_memory.h"

#include <cstring>

namespace skim {
namespace {

typedef uint64_t Vector __attribute__((vector_size(16)));

constexpr int64_t kLine = 64;  // bytes of a cache line

uint64_t SumOf(Vector sum) { return sum[0] + sum[1]; }

// kStreams parts of `bytes` bytes each, one behind the other; `bytes` is a multiple of a line.
template <int kStreams>
uint64_t SumParts(const char* data, int64_t bytes, int64_t ahead) {
  Vector sums[kStreams] = {};
  for (int64_t at = 0; at < bytes; at += kLine) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const char* line = data + stream * bytes + at;
      if (ahead != 0) __builtin_prefetch(line + ahead);
      for (int64_t i = 0; i < kLine; i += sizeof(Vector)) {
        Vector words;
        std::memcpy(&words, line + i, sizeof words);
        sums[stream] += words;
      }
    }
  }
  uint64_t total = 0;
  for (const Vector& sum : sums) total += SumOf(sum);
  return total;
}

}  // namespace

uint64_t SumWords(const char* data, int64_t bytes, int streams, int64_t ahead) {
  const int64_t part = bytes / (streams * kLine) * kLine;
  uint64_t total = streams == 1   ? SumParts<1>(data, part, ahead)
                   : streams == 2 ? SumParts<2>(data, part, ahead)
                                  : SumParts<kMaxStreams>(data, part, ahead);
  for (int64_t at = streams * part; at < bytes; at += sizeof(uint64_t)) {
    uint64_t word = 0;
    const int64_t left = bytes - at;
    std::memcpy(&word, data + at, left < int64_t{sizeof word} ? left : sizeof word);
    total += word;
  }
  return total;
}

}  // namespace skim
