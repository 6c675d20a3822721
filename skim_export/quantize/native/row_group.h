// The rows of a layer in groups, in the form that refinement takes.
#pragma once

#include <cstdint>
#include <vector>

#include "layer_row.h"
#include "row_refine.h"
#include "solver.h"

namespace skim {

// What is done to a group, which decides on its working memory.
enum class RefineStep { kFeedback, kRefine };

// Into how many groups of about as many rows a layer is divided. Few, for what is read of the matrix serves a group;
// but all threads should have work, and the working memory of each is bounded.
int64_t GroupCount(const SkimLayer& layer, const uint8_t* bits, RefineStep step, int32_t threads);

// Working memory of one thread, kept from group to group.
class RowGroup {
 public:
  // Rows first..end-1: v = sqrt(s) w, u = sqrt(s) a. Levels [rows, stride] and codes [rows, columns] are of the layer.
  RefineGroup Load(const SkimLayer& layer, int64_t first, int64_t end, const float* matrix, const uint8_t* bits,
                   RefineStep step, float* levels, int32_t stride, uint8_t* codes);

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
