// The asynchronous multiplications of warpgroups (wgmma). They are done as late as is allowed; until then the sums are
// poisoned. Who reads sums too early computes with what is not a number; who changes an operand or a sum before its
// multiplication is done, or writes an operand without the fence for it, is found out.
#pragma once

#include <cstdint>

namespace skim::on_cpu {

constexpr int kMultiplyRows = 64, kMultiplyColumns = 16, kMaxMultiplyTokens = 128;

// All of these are called by all threads of a warpgroup. `to_float`: of an element's bits, `d`: a float for every two
// tokens, `a`: 4 pairs of elements, `b`: a matrix descriptor.
void FenceMultiplies();
void MultiplyAddAsync(float (*to_float)(uint16_t), int tokens, float* d, const uint32_t* a, uint64_t b);
void CommitMultiplies();
void WaitForMultiplies(int pending);

// A block ends: aborts if multiplications are on their way.
void EndMultiplies();

}  // namespace skim::on_cpu
