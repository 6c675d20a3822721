// Codes and levels of a group of rows under a full quadratic objective.
#pragma once

#include <cstdint>

namespace skim {

constexpr int32_t kPanel = 64;  // columns of a panel: a tile of kPanel rows of the matrix takes half of the L1 cache

// Of a row whose codes are windows (docs/format.md): bits that a code takes of those before it, and levels.
constexpr int32_t kMostMemory = 3;
constexpr int32_t kMostWindows = 32;

constexpr double kRidge = 1e-6;  // of the mean diagonal: levels that no code uses stay where they are

// A row's values in a panel of columns; in the last panel those beyond the matrix are of no account.
struct alignas(64) Panel {
  float at[kPanel];
};

// What a column adds to a sum over columns: factor * H[column].
struct Term {
  int32_t column;  // in its panel
  float factor;
};

// Consecutive terms that belong to the same sum.
struct Run {
  uint8_t sum;
  uint8_t terms;
};

// One row: minimise (v - u c[q])^T H (v - u c[q]) over the codes q and the levels c.
struct RefineRow {
  int32_t count;        // number of levels
  int32_t memory;       // bits of a code that are those of the columns before; 0: codes are free
  int32_t free;         // number of levels that are free: of windows half of them, the others are their negatives
  int32_t first_level;  // number of free levels of the rows before it
  float* levels;        // c [count], ascending where codes are free; of windows c[count - 1 - w] = -c[w]
  uint8_t* codes;       // q [columns]
  int32_t changes;      // of codes in this sweep
  bool settled;         // there were none in the last one: there will be none
  double error;         // out
};

// Rows that are worked on together: what is read of the matrix is used for all of them.
struct RefineGroup {
  RefineRow* rows;
  int32_t size;         // number of rows
  int32_t levels;       // free ones of all rows
  const float* matrix;  // H [columns, columns], symmetric, with a positive diagonal; nullptr: the identity
  bool windows;         // all rows have a memory: eight columns after the other are a lane
  int32_t columns;
  int32_t panels;     // of kPanel columns, the last one of what is left
  Panel* target;      // v [panels][size]
  const Panel* unit;  // u [panels][size], positive
  // Working memory. The last four are for Refine alone.
  float* middles;   // between level i - 1 and level i of a row [levels]
  Term* terms;      // [panels][size][kPanel], ascending columns in each run
  Run* runs;        // [panels][size][kPanel]
  int32_t* counts;  // of runs [panels][size]
  Panel* pull;      // H v [panels][size]
  Panel* residual;  // H (v - u c[q]) [panels][size]
  Panel* products;  // H P [panels][levels], P the one-hot codes times u, for negatives -u
  double* system;   // P^T H P and P^T H v of a row [free][free + 1]
};

// Codes one column after the other, the error of each made up for in the columns to come (GPTQ, arXiv 2210.17323,
// section 3). `matrix` is the upper Cholesky factor of the inverse of H here; targets are overwritten, levels read. It
// may be the identity where all rows have windows.
using Feedback = void (*)(const RefineGroup& group);

// `rounds` times: the optimal levels for the codes, if `fit`, then up to `sweeps` rounds of coordinate descent on the
// codes, in lanes where they are windows. Never raises the error.
using Refine = void (*)(const RefineGroup& group, int32_t rounds, int32_t sweeps, bool fit);

void FeedbackRows(const RefineGroup& group);
void RefineRows(const RefineGroup& group, int32_t rounds, int32_t sweeps, bool fit);
#ifdef SKIM_SOLVER_AVX2
void FeedbackRowsAvx2(const RefineGroup& group);
void RefineRowsAvx2(const RefineGroup& group, int32_t rounds, int32_t sweeps, bool fit);
#endif

}  // namespace skim
