// Reading memory as fast as a core can, to measure how fast that is: nothing that models consist of.
#pragma once

#include <cstdint>

namespace skim {

constexpr int kMaxStreams = 4;

// The sum of `bytes` bytes taken as 64-bit words (the last one filled up with zeros), modulo 2^64: an addition for each
// vector, so that all is read and hardly anything else is done.
//   streams  1, 2 or 4: places at which it is read in turn
//   ahead    bytes between what is read and what is fetched into the cache; 0: no fetching
uint64_t SumWords(const char* data, int64_t bytes, int streams, int64_t ahead);

}  // namespace skim
