// Rows in groups, in the form that refinement takes.
#pragma once

#include <cstdint>
#include <vector>

#include "row.h"
#include "row_refine.h"
#include "solver.h"

namespace skim {

constexpr int32_t kMostRows = 128;     // of a group: reading the matrix more seldom gains nothing
constexpr double kRefineFloor = 1e-6;  // a weight counts at least this part of the row's mean weight

// What is done to a group, which decides on its working memory.
enum class RefineStep { kFeedback, kRefine };

// Into how many groups of about as many rows the rows are divided. Few, for what is read of the matrix serves a group;
// but all threads should have work, and the working memory of each is bounded.
int64_t GroupCount(const SkimRows& rows, const uint8_t* bits, bool windows, RefineStep step, int32_t threads);

// Working memory of a group of rows with so many bits, at most.
int64_t MostBytes(int32_t columns, int32_t bits, RefineStep step);

// Working memory of one thread, kept from group to group.
class RowGroup {
 public:
  // Rows first..end-1: v = sqrt(s) w, u = sqrt(s) a. Levels [rows, stride] and codes [rows, columns] are of all rows.
  // `memory` [rows] of windows; nullptr: codes are free.
  RefineGroup Load(const SkimRows& rows, int64_t first, int64_t end, const float* matrix, const uint8_t* bits,
                   const uint8_t* memory, RefineStep step, float* levels, int32_t stride, uint8_t* codes);

 private:
  std::vector<RefineRow> rows_;
  std::vector<Panel> target_, unit_, pull_, residual_, products_;
  std::vector<float> middles_;
  std::vector<Term> terms_;
  std::vector<Run> runs_;
  std::vector<int32_t> counts_;
  std::vector<double> system_;
};

}  // namespace skim
