#include "multiplies.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "grid.h"

namespace skim::on_cpu {
namespace {

constexpr int kPairs = 4;             // of a thread's part of a
constexpr size_t kChunk = 16;         // bytes: of shared memory that stay together
constexpr size_t kGroupBytes = 1024;  // of eight rows of 128 bytes

// A matrix descriptor of K-major tokens: 14 bits of the address, of the leading and of the stride offset, in units of
// 16 bytes; 3 bits of base offset; 2 of swizzle.
struct Descriptor {
  size_t start, stride;

  explicit Descriptor(uint64_t bits) : start((bits & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    const auto base = static_cast<int>(bits >> 49 & 7), swizzle = static_cast<int>(bits >> 62);
    if (bits & ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62)) {
      Abort("matrix descriptor %#llx: bits that must be 0 are not", static_cast<unsigned long long>(bits));
    }
    // The other modes are not emulated. With this one the leading offset is not used for 16 columns.
    if (swizzle != 1) Abort("a matrix descriptor with swizzle %d: only that of 128 bytes (1) is emulated", swizzle);
    if (base != 0) Abort("a matrix descriptor with base offset %d: only 0 is emulated", base);
    if (start % kGroupBytes >= 128) Abort("a matrix at byte %zu: eight tokens begin at no multiple of 1024", start);
  }

  // Where columns 8 chunk to 8 chunk + 7 of a token lie.
  size_t Offset(int token, int chunk) const {
    const size_t address = start + token / 8 * stride + token % 8 * 128 + chunk * kChunk;
    return address ^ (address >> 7 & 7) << 4;
  }
};

using Columns = std::array<uint16_t, kMultiplyColumns>;
using Operand = std::vector<Columns>;  // of each token

Operand ReadOperand(const Descriptor& descriptor, int tokens, unsigned first) {
  Operand operand(tokens);
  for (int token = 0; token < tokens; ++token) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      const size_t offset = descriptor.Offset(token, chunk);
      RecordAsyncRead(first, offset, kChunk);
      std::memcpy(&operand[token][chunk * 8], SharedMemory() + offset, kChunk);
    }
  }
  return operand;
}

// What one thread calls MultiplyAddAsync with.
struct Part {
  float (*to_float)(uint16_t);
  int tokens;
  float* d;
  const uint32_t* a;
  uint64_t b;
};

struct Product {
  std::array<Part, kWarpgroup> parts;
  std::array<std::array<uint32_t, kPairs>, kWarpgroup> a;  // as it was in the beginning
  Operand b;

  int tokens() const { return parts[0].tokens; }
  int sums() const { return kMultiplyRows * tokens() / static_cast<int>(kWarpgroup); }  // of a thread
};

// Sums that multiplications are on their way to; meanwhile the threads' own are poisoned.
struct Sums {
  int pending = 0;
  float values[kMultiplyRows][kMaxMultiplyTokens];
};

class Warpgroup {
 public:
  void Fence() { ++fences_; }

  void Start(unsigned first, void* const (&parts)[kWarpgroup]) {
    Product product;
    for (unsigned i = 0; i < kWarpgroup; ++i) {
      product.parts[i] = *static_cast<const Part*>(parts[i]);
      if (product.parts[i].b == product.parts[0].b) continue;
      Abort("threads %u and %u multiply with different matrix descriptors", first, first + i);
    }
    for (unsigned i = 0; i < kWarpgroup; ++i) {
      std::memcpy(product.a[i].data(), product.parts[i].a, sizeof product.a[i]);
      CheckFence(first + i, product.parts[i].a, product.a[i]);
    }
    product.b = ReadOperand(Descriptor(product.parts[0].b), product.tokens(), first);
    Take(product);
    open_.push_back(product);
  }

  void Commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }

  // Does all groups but the newest `pending`.
  void Wait(unsigned first, size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front()) {
      for (const Product& product : groups_.front()) Do(first, product);
    }
  }

  bool busy() const { return !open_.empty() || !groups_.empty(); }

 private:
  struct Use {
    uint64_t fences;
    std::array<uint32_t, kPairs> content;
  };

  // Registers that have changed since they were an operand must have been fenced; so must any before the first time.
  void CheckFence(unsigned thread, const uint32_t* a, const std::array<uint32_t, kPairs>& content) {
    const auto before = uses_.find(a);
    const bool changed =
        before == uses_.end() ? fences_ == 0 : before->second.content != content && before->second.fences == fences_;
    if (changed) Abort("thread %u multiplies registers that it has written since FenceMultiplies", thread);
    uses_[a] = {fences_, content};
  }

  // Thread i of the warpgroup has sum j of a row and a token.
  static int Row(unsigned i, int j) { return static_cast<int>(i / kWarp * 16 + i % kWarp / 4) + j / 2 % 2 * 8; }
  static int Token(unsigned i, int j) { return j / 4 * 8 + static_cast<int>(i % 4) * 2 + j % 2; }

  void Take(const Product& product) {
    Sums& sums = sums_[product.parts[0].d];
    if (sums.pending++ > 0) return;
    for (unsigned i = 0; i < kWarpgroup; ++i) {
      float* d = product.parts[i].d;
      for (int j = 0; j < product.sums(); ++j) sums.values[Row(i, j)][Token(i, j)] = d[j];
      std::memset(d, kPoison, product.sums() * sizeof *d);
    }
  }

  void Do(unsigned first, const Product& product) {
    float a[kMultiplyRows][kMultiplyColumns], b[kMultiplyColumns][kMaxMultiplyTokens];
    const auto to_float = product.parts[0].to_float;
    const int tokens = product.tokens();
    for (unsigned i = 0; i < kWarpgroup; ++i) {
      const Part& part = product.parts[i];
      if (std::memcmp(part.a, product.a[i].data(), sizeof product.a[i]) != 0) {
        Abort("thread %u has changed registers that are multiplied", first + i);
      }
      const auto* bytes = reinterpret_cast<const unsigned char*>(part.d);
      if (!std::all_of(bytes, bytes + product.sums() * sizeof(float),
                       [](unsigned char byte) { return byte == kPoison; })) {
        Abort("thread %u has changed sums that are on their way", first + i);
      }
      for (int j = 0; j < 2 * kPairs; ++j) {  // as MultiplyAdd's
        const int row = static_cast<int>(i / kWarp * 16 + i % kWarp / 4) + (j & 2 ? 8 : 0);
        const int column = static_cast<int>(i % 4) * 2 + j % 2 + (j >= 4 ? 8 : 0);
        a[row][column] = to_float(static_cast<uint16_t>(product.a[i][j / 2] >> j % 2 * 16));
      }
    }
    if (ReadOperand(Descriptor(product.parts[0].b), product.tokens(), first) != product.b) {
      Abort("block %u: shared memory that threads %u and on multiply has changed", block_index.x, first);
    }
    for (int token = 0; token < tokens; ++token) {
      for (int k = 0; k < kMultiplyColumns; ++k) b[k][token] = to_float(product.b[token][k]);
    }
    Sums& sums = sums_.at(product.parts[0].d);
    for (int row = 0; row < kMultiplyRows; ++row) {
      for (int k = 0; k < kMultiplyColumns; ++k) {
        for (int token = 0; token < tokens; ++token) sums.values[row][token] += a[row][k] * b[k][token];
      }
    }
    if (--sums.pending > 0) return;
    for (unsigned i = 0; i < kWarpgroup; ++i) {
      for (int j = 0; j < product.sums(); ++j) product.parts[i].d[j] = sums.values[Row(i, j)][Token(i, j)];
    }
    sums_.erase(product.parts[0].d);
  }

  uint64_t fences_ = 0;
  std::map<const uint32_t*, Use> uses_;
  std::map<const float*, Sums> sums_;  // by the first thread's
  std::vector<Product> open_;          // not committed yet
  std::deque<std::vector<Product>> groups_;
};

std::map<unsigned, Warpgroup> warpgroups;  // of the running block, by their first threads

}  // namespace

void FenceMultiplies() {
  MeetWarpgroup(Barrier::kFenceMultiplies, nullptr,
                [](unsigned first, void* const(&)[kWarpgroup]) { warpgroups[first].Fence(); });
}

void MultiplyAddAsync(float (*to_float)(uint16_t), int tokens, float* d, const uint32_t* a, uint64_t b) {
  Part part{to_float, tokens, d, a, b};
  MeetWarpgroup(Barrier::kMultiplyAddAsync, &part,
                [](unsigned first, void* const(&parts)[kWarpgroup]) { warpgroups[first].Start(first, parts); });
}

void CommitMultiplies() {
  MeetWarpgroup(Barrier::kCommitMultiplies, nullptr,
                [](unsigned first, void* const(&)[kWarpgroup]) { warpgroups[first].Commit(); });
}

void WaitForMultiplies(int pending) {
  MeetWarpgroup(Barrier::kWaitForMultiplies, &pending, [](unsigned first, void* const(&parts)[kWarpgroup]) {
    warpgroups[first].Wait(first, *static_cast<int*>(parts[0]));
  });
}

void EndMultiplies() {
  for (const auto& [first, warpgroup] : warpgroups) {
    if (warpgroup.busy()) Abort("block %u ends, but threads %u and on still multiply", block_index.x, first);
  }
  warpgroups.clear();
}

}  // namespace skim::on_cpu
