// The product of few tokens: a block has tiles of rows, one after the other, and its warps share the columns. Weights
// are read once, are on their way to shared memory ahead of their use, and go from codes to tensor core fragments in
// registers.
#pragma once

#include <device.cuh>
#include <type_traits>

#include "activations.cuh"
#include "code_stream.cuh"
#include "codes.cuh"
#include "levels.cuh"
#include "product.cuh"
#include "quantized.cuh"
#include "tile.cuh"
#include "warp_parts.cuh"

namespace skim::cuda {

constexpr int kDecodeWarps = 8;
constexpr int kDecodeThreads = 32 * kDecodeWarps;

// Words of each vector that a thread has in registers at once: as many as fit into 48 bytes for each row.
static constexpr int WordsAtOnce(int row_tiles, int level_bits) { return row_tiles == 1 && level_bits <= 3 ? 4 : 2; }

// Where levels are looked up that do not fit into registers, and what their tables take. Those of 16 rows have entries
// that lie apart only where that is cheap.
static constexpr Place TablePlace(int row_tiles, int level_bits) {
  return row_tiles == 2 || level_bits <= 6 ? Place::kSharedApart : Place::kShared;
}
static constexpr int TableBytes(int row_tiles, int level_bits) {
  return EntryDistance(TablePlace(row_tiles, level_bits)) << level_bits;
}

// How a launch divides its work, and the shared memory of a block. It begins with the tables.
struct DecodePlan {
  StreamPlan codes;
  int tokens;        // of a block
  int table_bytes;   // of levels that do not fit into registers
  int units;         // whose activations a warp has room for: all of its units, or one
  bool affine;       // whether some rows have even levels, so that their results need the sums of tokens
  int shared_bytes;  // in all
};

// For up to 8 kTokenTiles tokens a block. Units of kWords words of each vector for a thread: 4 are copied faster, 2
// take half of the room.
template <typename Element, LevelKind kTable, int kRowTiles, int kTokenTiles, int kWords, bool kIntegers>
struct Decode {
  static constexpr int kRows = kMmaRows * kRowTiles, kTokens = kMmaTokens * kTokenTiles;
  static constexpr int kBlocks = 2 / kRowTiles;  // of a multiprocessor

  using Stream = CodeStream<kRowTiles, kWords, kDecodeWarps>;
  // Tiles whose products have room: with two of them those of one are stored while the next ones come.
  static constexpr int kPartTiles = kRowTiles == 1 ? 2 : 1;

  // Facts about integers: sums of upper and lower bytes, and the bits of the largest magnitude.
  using Parts = std::conditional_t<kIntegers, WarpParts<int32_t, kRows, kDecodeWarps, 2, 3>,
                                   WarpParts<float, kRows, kDecodeWarps>>;
  using Tile = std::conditional_t<kIntegers, QuantizedTile<Element, Stream::kSuperblocks>, ActivationTile<Element>>;
  using Sums =
      std::conditional_t<kIntegers, ByteProducts<kRowTiles, kTokenTiles>, Product<kRowTiles, kTokenTiles, Element>>;

  // Units that a warp has of a tile, at most.
  static constexpr int WarpUnits(int64_t K) {
    return static_cast<int>(CeilDiv(Stream::Units(static_cast<int>(K)), kDecodeWarps));
  }

  // A plan that takes at most `limit` bytes of shared memory. Activations stay there if they fit; otherwise they are
  // copied again for each tile, from the L2 cache. Fewer tokens than kTokens where there is no room for all, or none.
  static DecodePlan Plan(const Layer& layer, int64_t M, int limit) {
    constexpr int kMaxSlots = 3;
    DecodePlan plan{};
    plan.codes = Stream::Plan(layer);
    for (int i = 0; i < layer.run_count; ++i) {
      const RowRun& run = layer.runs[i];
      const int level_bits = LevelBits(run.row_class);
      const bool in_registers = InRegisters(level_bits, ClassMemory(run.row_class), kTable == LevelKind::kTableInt8);
      const bool in_memory = !kIntegers && !in_registers && !IsAffine(run.row_class);
      const int table_bytes = in_memory ? TableBytes(kRowTiles, level_bits) : 0;
      if (table_bytes > plan.table_bytes) plan.table_bytes = table_bytes;
      plan.affine |= IsAffine(run.row_class);
    }
    const auto bytes = [&](int tokens, int units, int slots) {
      const int64_t of_warp =
          int64_t{units} * Stream::kSuperblocks * tokens * Tile::kTokenBytes + slots * plan.codes.slot_bytes;
      return plan.table_bytes + Parts::Bytes(tokens, kPartTiles) + kDecodeWarps * of_warp;
    };
    plan.tokens = static_cast<int>(M < kTokens ? M : kTokens);
    while (plan.tokens > 0 && bytes(plan.tokens, 1, 1) > limit) --plan.tokens;
    if (plan.tokens == 0) return plan;
    plan.codes.slots = 1;
    plan.units = WarpUnits(layer.weights.K);
    if (bytes(plan.tokens, plan.units, 1) > limit) {
      plan.units = 1;
    } else {
      while (plan.codes.slots < kMaxSlots && bytes(plan.tokens, plan.units, plan.codes.slots + 1) <= limit)
        ++plan.codes.slots;
    }
    plan.shared_bytes = static_cast<int>(bytes(plan.tokens, plan.units, plan.codes.slots));
    return plan;
  }

  // For a GPU: as many blocks as a multiprocessor can have share its memory, unless tokens are left out then.
  static DecodePlan Plan(const Layer& layer, int64_t M, const Gpu& gpu) {
    constexpr int kReserved = 1024;  // that the system takes for each block
    const int share = gpu.shared_bytes / kBlocks - kReserved;
    const int64_t wanted = M < kTokens ? M : kTokens;
    DecodePlan plan = Plan(layer, M, share < gpu.block_shared_bytes ? share : gpu.block_shared_bytes);
    int blocks = kBlocks;
    if (plan.tokens < wanted || plan.shared_bytes > share) plan = Plan(layer, M, gpu.block_shared_bytes), blocks = 1;
    if (plan.tokens == 0) return plan;
    const int64_t tiles = CountTiles(layer, kRows), places = int64_t{blocks} * gpu.multiprocessors;
    const int64_t token_tiles = CeilDiv(M, plan.tokens), of_tokens = CeilDiv(places, token_tiles);
    plan.codes.row_blocks = static_cast<int>(tiles < of_tokens ? tiles : of_tokens);
    return plan;
  }

  // Tables in shared memory, for classes that have such.
  template <LevelKind kKind, typename Code>
  static SKIM_DEVICE void FillTables(const RowTile& tile, char* tables) {
    using RowLevels = Levels<kKind, Code, TablePlace(kRowTiles, Code::kLevelBits), Element>;
    if constexpr (RowLevels::kInMemory) {
      for (int r = 0; r < kRowTiles; ++r) {
        int64_t rows[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          rows[h] = tile.first + kMmaRows * r + 8 * h + threadIdx.x % 32 / 4;
          if (rows[h] >= tile.run.count) rows[h] = tile.run.count - 1;
        }
        RowLevels::template Fill<kDecodeWarps>(tile.run, rows, tables + 128 * r);
      }
      __syncthreads();
    }
  }

  // Adds the products of a unit. `activations`: of its superblocks, the first of which is `first`.
  template <LevelKind kKind, typename Code>
  static SKIM_DEVICE void Multiply(const RowTile& tile, Stream& stream, const char* slot, const char* tables,
                                   char* activations, int first, int tokens, Sums& sums) {
    using RowLevels = std::conditional_t<kIntegers, ByteLevels<kKind, Code>,
                                         Levels<kKind, Code, TablePlace(kRowTiles, Code::kLevelBits), Element>>;
    constexpr int kBits = Code::kBits, kMost = WordsAtOnce(kRowTiles, Code::kLevelBits),
                  kAtOnce = kMost < kWords ? kMost : kWords;
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    RowLevels levels[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int last = static_cast<int>(tile.run.count) - 1 - tile.first;
        int row = kMmaRows * r + 8 * h + g;
        if (row > last) row = last;  // computed once more, never stored
        const char* codebooks = slot + Stream::CodeBytes(kBits);
        if constexpr (kIntegers) {
          levels[r][h].Prepare(codebooks, row);
        } else {
          levels[r][h].template Prepare<FromShared>(codebooks, row, tables + 128 * r, h);
        }
      }
    }
    const int block = first + c * kWords / 8, word = c * kWords % 8;
    const Tile of_block(activations + (block - first) * tokens * Tile::kTokenBytes, block);
    // Windows of bfloat16 would take more registers than there are.
    constexpr bool kUnrolled = InRegisters(Code::kLevelBits, Code::kMemory, kTable == LevelKind::kTableInt8) &&
                               !(Code::kMemory > 0 && std::is_same_v<Element, Bfloat16>);
#pragma unroll(kUnrolled ? kWords : 1)
    for (int i = 0; i < kWords; i += kAtOnce) {
      uint32_t words[kRowTiles][2][kBits][kAtOnce];
      Stream::template Read<kBits>(slot, i, words);
      if (i + kAtOnce == kWords) {
        __syncwarp();
        stream.Refill();
      }
      if constexpr (kIntegers) {
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          uint32_t some[1][kRowTiles][2][kBits];
          SortByWord(words, k, some);
          sums.Add(levels, some[0], of_block, word + i + k, tokens);
        }
      } else {
        constexpr int kTogether = Sums::Reader::kWords;
#pragma unroll
        for (int k = 0; k < kAtOnce; k += kTogether) {
          uint32_t some[kTogether][kRowTiles][2][kBits];
          SortByWord(words, k, some);
          AddWords(levels, some, typename Sums::Reader(of_block, word + i + k, tokens), sums);
        }
      }
    }
  }

  // Calls body(superblock, its activations) for all that are a warp's.
  template <typename Body>
  static SKIM_DEVICE void ForSuperblocks(int K, int tokens, char* activations, Body&& body) {
#pragma unroll 1
    for (int unit = threadIdx.x / 32; unit < Stream::Units(K); unit += kDecodeWarps) {
#pragma unroll 1
      for (int i = 0; i < Stream::kSuperblocks; ++i, activations += tokens * Tile::kTokenBytes) {
        body(unit * Stream::kSuperblocks + i, activations);
      }
    }
  }

  // Makes a warp's activations integers, which stay.
  static SKIM_DEVICE void Quantize(const Activations<Element>& x, char* activations, const Parts& parts) {
#pragma unroll 1
    for (int token = 0; token < x.count; ++token) {
      uint32_t largest = 0;
      ForSuperblocks(x.K, x.count, activations, [&](int block, char* of_block) {
        const uint32_t of_lane = Tile(of_block, block).Largest(x, token);
        if (of_lane > largest) largest = of_lane;
      });
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffff, largest, distance);
        if (other > largest) largest = other;
      }
      if (threadIdx.x % 32 == 0) parts.WriteFact(token, static_cast<int32_t>(largest), 2);
    }
    __syncthreads();
#pragma unroll 1
    for (int token = 0; token < x.count; ++token) {
      const float inverse = InverseUnit(UnitOf(parts, token));
      int32_t sums[2] = {};
      ForSuperblocks(x.K, x.count, activations,
                     [&](int block, char* of_block) { Tile(of_block, block).Fill(x, token, inverse, sums); });
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
          sums[k] += __shfl_xor_sync(0xffffffff, sums[k], distance);
        }
        if (threadIdx.x % 32 == 0) parts.WriteFact(token, sums[k], k);
      }
    }
  }

  static SKIM_DEVICE float UnitOf(const Parts& parts, int token) {
    int32_t largest = 0;  // as bits of numbers that are not negative, they compare as integers
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) {
      const int32_t of_warp = parts.Fact(i, token, 2);
      if (of_warp > largest) largest = of_warp;
    }
    return TokenUnit(static_cast<uint32_t>(largest));
  }

  static SKIM_DEVICE void Write(Sums& sums, const Parts& parts) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if constexpr (kIntegers) {
          for (int k = 0; k < 2; ++k) parts.WriteProducts(kMmaRows * r, kMmaTokens * t, sums.sums[k][r][t], k);
        } else {
          parts.WriteProducts(kMmaRows * r, kMmaTokens * t, sums.Finish(r, t));
        }
      }
    }
  }

  static SKIM_DEVICE void Store(const Parts& parts, int row_class, const RowOutput<Element>& output, unsigned turn) {
    const bool affine = IsAffine(row_class);
    if constexpr (kIntegers) {
      const uint32_t middle = affine ? 1u << (ClassBits(row_class) - 1) : 0;  // that codes have been multiplied with
      parts.Store(affine, turn, [&](int token, const int32_t (&products)[2], const int32_t (&sums)[2]) {
        int64_t digits[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {  // fit into 32 bits less that, whatever has wrapped around
          digits[k] =
              static_cast<int32_t>(static_cast<uint32_t>(products[k]) - middle * static_cast<uint32_t>(sums[k]));
        }
        const float unit = UnitOf(parts, token);
        output.Store(token, static_cast<float>(256 * digits[0] + digits[1]),
                     unit * static_cast<float>(256 * sums[0] + sums[1]), unit);
      });
    } else {
      parts.Store(affine, turn, [&](int token, const float (&product)[1], const float (&sum)[1]) {
        output.Store(token, product[0], sum[0]);
      });
    }
  }

  // `with(row_class, body)` calls body(kind, code), as WithLevels does.
  template <typename With>
  static SKIM_DEVICE void Run(const DeviceLayer& device, const Element* x, int64_t M, const DecodePlan& plan,
                              Epilogue epilogue, Element* y, With&& with) {
    const Layer& layer = device.layer;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    const int K = static_cast<int>(layer.weights.K), units = Stream::Units(K);
    const auto first = static_cast<int>(blockIdx.x) % plan.codes.row_blocks;
    const int64_t first_token = int64_t{blockIdx.x / plan.codes.row_blocks} * plan.tokens;
    const int tokens = static_cast<int>(M - first_token < plan.tokens ? M - first_token : plan.tokens);
    const Activations<Element> of_tokens{x + first_token * K, layer.weights.column_scale.data, tokens, K};
    y += first_token * layer.weights.N;

    char* tables = SharedMemory();
    char* parts = tables + plan.table_bytes;
    const int unit_bytes = Stream::kSuperblocks * tokens * Tile::kTokenBytes, warp_bytes = plan.units * unit_bytes;
    char* of_warps = parts + Parts::Bytes(plan.tokens, kPartTiles);
    char* activations = of_warps + warp * warp_bytes;
    char* slots = of_warps + kDecodeWarps * warp_bytes + warp * plan.codes.slots * plan.codes.slot_bytes;
    const auto stage = [&](int unit, char* to) {
      if constexpr (!kIntegers) {
#pragma unroll 1
        for (int i = 0; i < Stream::kSuperblocks; ++i) {
          Tile(to + i * tokens * Tile::kTokenBytes, unit * Stream::kSuperblocks + i).Stage(of_tokens, lane, 32);
        }
      }
    };
    // The activations of one of the warp's units; those of another one are gone then.
    const auto stage_alone = [&](int unit) {
      __syncwarp();
      stage(unit, activations);
      CommitCopies();
    };
    const bool stay = kIntegers || plan.units == WarpUnits(K);
    const int next_bytes = stay ? unit_bytes : 0;  // from a unit to the warp's next one
    if (stay) {
      for (int unit = warp, i = 0; unit < units; unit += kDecodeWarps, ++i) stage(unit, activations + i * unit_bytes);
    }
    Stream stream(plan.codes, first, slots);
    if constexpr (kIntegers) {
      Quantize(of_tokens, activations, Parts(parts, tokens, 0));
    } else if (plan.affine) {
      TokenSums<kTokenTiles, Element> sums;
      char* of_unit = activations;
#pragma unroll 1
      for (int unit = warp; unit < units; unit += kDecodeWarps, of_unit += next_bytes) {
        if (!stay) stage_alone(unit);
        WaitForCopies<0>();
        __syncwarp();
#pragma unroll 1
        for (int i = 0; i < Stream::kSuperblocks; ++i) {
          sums.Add(Tile(of_unit + i * tokens * Tile::kTokenBytes, unit * Stream::kSuperblocks + i), tokens);
        }
      }
#pragma unroll
      for (int i = 0; g == 0 && i < 2 * kTokenTiles; ++i) {
        Parts(parts, tokens, 0).WriteFact(kMmaTokens * (i / 2) + 2 * c + i % 2, sums.Sum(i / 2, i % 2));
      }
    }
    TileCursor cursor(plan.codes.tiles, plan.codes.run_count, first);
    const auto rows = [&] { return RowTile{layer.runs[cursor.Run()], cursor.Tile() * kRows}; };
    const auto row_to_store = [](const RowTile& tile) {
      const int row = tile.first + Parts::Row(), last = static_cast<int>(tile.run.count) - 1;
      return row < last ? row : last;
    };
    int n = cursor.AtEnd() ? 0 : OriginalRow(layer, rows().run, row_to_store(rows()));
#pragma unroll 1
    for (unsigned turn = 0; !cursor.AtEnd(); ++turn) {
      const RowTile tile = rows();
      cursor.Skip(plan.codes.row_blocks);
      const RowOutput<Element> output(device, tile.run, row_to_store(tile), n, epilogue, y);
      if (!cursor.AtEnd()) n = OriginalRow(layer, rows().run, row_to_store(rows()));  // for the next tile
      if constexpr (!kIntegers) {
        with(tile.run.row_class, [&](auto kind, auto code) __attribute__((always_inline)) {
          FillTables<decltype(kind)::value, decltype(code)>(tile, tables);
        });
      }
      Sums sums;
      char* of_unit = activations;
#pragma unroll 1
      for (int unit = warp; unit < units; unit += kDecodeWarps, of_unit += next_bytes) {
        if (!stay) stage_alone(unit);
        const char* slot = stream.Next();
        __syncwarp();
        with(tile.run.row_class, [&](auto kind, auto code) __attribute__((always_inline)) {
          Multiply<decltype(kind)::value, decltype(code)>(tile, stream, slot, tables, of_unit,
                                                          unit * Stream::kSuperblocks, tokens, sums);
        });
      }
      const Parts of_tile(parts, tokens, turn % kPartTiles);
      Write(sums, of_tile);
      __syncthreads();
      if (tile.first + Parts::Row() < static_cast<int>(tile.run.count)) {
        Store(of_tile, tile.run.row_class, output, turn);
      }
      if (kPartTiles == 1) __syncthreads();  // else the next tile's barrier comes before these parts are written again
    }
  }
};

// Of integers there are only levels that are bytes in registers.
template <LevelKind kTable, bool kIntegers, typename Body>
SKIM_DEVICE void WithDecodeLevels(int row_class, Body&& body) {
  WithLevels<kTable>(row_class, [&](auto kind, auto code) __attribute__((always_inline)) {
    constexpr bool kAffine = decltype(kind)::value == LevelKind::kAffine;
    if constexpr (!kIntegers || kAffine || decltype(code)::kLevelBits <= kMaxRegisterBits) body(kind, code);
  });
}

template <typename Element, LevelKind kTable, int kRowTiles, int kTokenTiles, int kWords, bool kIntegers>
__global__ void __launch_bounds__(kDecodeThreads, 2 / kRowTiles)
    DecodeKernel(const DeviceLayer device, const Element* x, int64_t M, const DecodePlan plan, Epilogue epilogue,
                 Element* y) {
  if constexpr (kIsSupported<Element> && (kHasWideBytes || !kIntegers)) {
    Decode<Element, kTable, kRowTiles, kTokenTiles, kWords, kIntegers>::Run(
        device, x, M, plan, epilogue, y, [](int row_class, auto&& body) __attribute__((always_inline)) {
          WithDecodeLevels<kTable, kIntegers>(row_class, body);
        });
  }
}

// A way to launch the kernel for a layer, or none if the plan has no tokens.
template <typename Element>
struct Decoder {
  DecodePlan plan;
  void (*kernel)(DeviceLayer, const Element*, int64_t, DecodePlan, Epilogue, Element*);
};

template <typename Element, LevelKind kTable, int kRowTiles, int kTokenTiles, int kWords, bool kIntegers>
Decoder<Element> PlanDecoder(const Layer& layer, int64_t M, const Gpu& gpu) {
  return {Decode<Element, kTable, kRowTiles, kTokenTiles, kWords, kIntegers>::Plan(layer, M, gpu),
          DecodeKernel<Element, kTable, kRowTiles, kTokenTiles, kWords, kIntegers>};
}

template <typename Element, int kRowTiles, int kTokenTiles, int kWords>
Decoder<Element> FindDecoder(const Layer& layer, int64_t M) {
  const auto plan = layer.weights.codebook_type == CodebookType::kInt8
                        ? PlanDecoder<Element, LevelKind::kTableInt8, kRowTiles, kTokenTiles, kWords, false>
                        : PlanDecoder<Element, LevelKind::kTableFloat16, kRowTiles, kTokenTiles, kWords, false>;
  return plan(layer, M, CurrentGpu());
}

// The same with integers: none where they are not allowed, or levels are not bytes in registers, or activations do not
// stay, which are costly to make.
template <typename Element, int kRowTiles, int kTokenTiles, int kWords>
Decoder<Element> FindIntegerDecoder(const DeviceLayer& device, int64_t M) {
  const Layer& layer = device.layer;
  const Gpu gpu = CurrentGpu();
  bool possible = device.integers && layer.weights.K <= kMaxIntegerColumns && gpu.capability >= kAmpereCapability;
  for (int i = 0; i < layer.run_count; ++i) {
    const int row_class = layer.runs[i].row_class;
    if (IsAffine(row_class)) continue;
    if (layer.weights.codebook_type != CodebookType::kInt8 || LevelBits(row_class) > kMaxRegisterBits) possible = false;
  }
  if (!possible) return {};
  using Kernel = Decode<Element, LevelKind::kTableInt8, kRowTiles, kTokenTiles, kWords, true>;
  Decoder<Element> found =
      PlanDecoder<Element, LevelKind::kTableInt8, kRowTiles, kTokenTiles, kWords, true>(layer, M, gpu);
  const int64_t wanted = M < Kernel::kTokens ? M : Kernel::kTokens;
  if (found.plan.tokens < wanted || found.plan.units < Kernel::WarpUnits(layer.weights.K)) return {};
  return found;
}

template <typename Element>
int LaunchDecoder(const Decoder<Element>& decoder, const DeviceLayer& layer, const void* x, int64_t M,
                  Epilogue epilogue, void* y, void* stream) {
  const DecodePlan& plan = decoder.plan;
  return Launch(decoder.kernel, plan.codes.row_blocks * CeilDiv(M, plan.tokens), kDecodeThreads, plan.shared_bytes,
                stream, layer, static_cast<const Element*>(x), M, plan, epilogue, static_cast<Element*>(y));
}

using DecodeLauncher = int(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y,
                           void* stream);

// Blocks of 16 rows. Where there is no room for one token, `otherwise` launches something else.
template <typename Element>
int LaunchDecode8(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream,
                  DecodeLauncher& otherwise) {
  Decoder<Element> decoder = FindIntegerDecoder<Element, 1, 1, 4>(layer, M);
  if (decoder.plan.tokens == 0) {
    decoder = FindDecoder<Element, 1, 1, 4>(layer.layer, M);
    const Decoder<Element> smaller = FindDecoder<Element, 1, 1, 2>(layer.layer, M);
    if (smaller.plan.tokens > decoder.plan.tokens) decoder = smaller;
  }
  if (decoder.plan.tokens == 0) return otherwise(layer, x, M, epilogue, y, stream);
  return LaunchDecoder(decoder, layer, x, M, epilogue, y, stream);
}

// Blocks of 32 rows. Where there is no room for all tokens, `otherwise` launches something else.
template <typename Element>
int LaunchDecode16(const DeviceLayer& layer, const void* x, int64_t M, Epilogue epilogue, void* y, void* stream,
                   DecodeLauncher& otherwise) {
  constexpr int kTokens = 2 * kMmaTokens;
  Decoder<Element> decoder = FindIntegerDecoder<Element, 2, 2, 2>(layer, M);
  if (decoder.plan.tokens == 0) decoder = FindDecoder<Element, 2, 2, 2>(layer.layer, M);
  if (decoder.plan.tokens < (M < kTokens ? M : kTokens)) return otherwise(layer, x, M, epilogue, y, stream);
  return LaunchDecoder(decoder, layer, x, M, epilogue, y, stream);
}

}  // namespace skim::cuda
