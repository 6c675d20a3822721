// Codes and levels of a few rows under a full quadratic objective.
#pragma once

#include <cstdint>

namespace skim {

// Rows that are worked on together, so that a row of the matrix is read from memory once for all of them.
constexpr int32_t kRowsTogether = 4;

// One row: minimise (v - u c[q])^T H (v - u c[q]) over the codes q and the levels c.
struct RefineRow {
  float* target;      // v [columns]
  const float* unit;  // u [columns], positive
  int32_t count;      // number of levels
  float* levels;      // c [count], ascending
  uint8_t* codes;     // q [columns]
  float* pull;        // working memory: H v [columns]
  float* residual;    // working memory: H (v - u c[q]) [columns]
  float* products;    // working memory: H P [count][columns], P the one-hot codes times u
  double* system;     // working memory: P^T H P and P^T H v [count][count + 1]
  double error;       // out
};

struct RefineTask {
  RefineRow* rows;
  int32_t size;         // number of rows, up to kRowsTogether
  const float* matrix;  // H [columns, columns], symmetric, with a positive diagonal
  int32_t columns;
};

// Codes one column after the other, the error of each made up for in the columns to come (GPTQ, arXiv 2210.17323,
// section 3). `matrix` is the upper Cholesky factor of the inverse of H here; targets are overwritten, levels read.
using Feedback = void (*)(const RefineTask& task);

// `rounds` times: the optimal levels for the codes, if `fit`, then up to `sweeps` rounds of coordinate descent on the
// codes. Never raises the error.
using Refine = void (*)(const RefineTask& task, int32_t rounds, int32_t sweeps, bool fit);

void FeedbackRows(const RefineTask& task);
void RefineRows(const RefineTask& task, int32_t rounds, int32_t sweeps, bool fit);
#ifdef SKIM_SOLVER_AVX2
void FeedbackRowsAvx2(const RefineTask& task);
void RefineRowsAvx2(const RefineTask& task, int32_t rounds, int32_t sweeps, bool fit);
#endif

}  // namespace skim
