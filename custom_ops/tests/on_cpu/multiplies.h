// The asynchronous multiplications of warpgroups (wgmma). They are done as late as is allowed; until then the sums are
// poisoned. Who reads sums too early computes with what is not a number; who changes an operand or a sum before its
// multiplication is done, or writes an operand without the fence for it, is found out.
#pragma once

#include <cstdint>

namespace skim::on_cpu {

constexpr int kMultiplyRows = 64, kMultiplyTokens = 128, kMultiplyColumns = 16;

// All of these are called by all threads of a warpgroup. `d`: 64 floats, `a`: 4 pairs of halves, `b`: a matrix
// descriptor.
void FenceMultiplies();
void MultiplyAddAsync(float* d, const uint32_t* a, uint64_t b);
void CommitMultiplies();
void WaitForMultiplies(int pending);

// A block ends: aborts if multiplications are on their way.
void EndMultiplies();

}  // namespace skim::on_cpu
