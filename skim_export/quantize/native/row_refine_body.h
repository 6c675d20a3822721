// Included by one source file per instruction set, which defines the names SKIM_FEEDBACK_ROWS and SKIM_REFINE_ROWS.
// Nothing of the standard library is used here, see split_search_body.h.
#include <cstdint>

#include "row_refine.h"

namespace skim {
namespace {

#include "lane_search_body.h"
#include "panel_sums_body.h"

constexpr int32_t kLanes = 8;
constexpr int32_t kInterleaved = 8;  // rows that take turns at each column: one alone would wait for its own results

// The order of summation is fixed, so that all instruction sets give the same bits.
inline void AddProducts(const Panel& x, const Panel& y, int32_t n, double* sums) {
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int32_t lane = 0; lane < kLanes; lane++) sums[lane] += static_cast<double>(x.at[i + lane]) * y.at[i + lane];
  }
  for (; i < n; i++) sums[0] += static_cast<double>(x.at[i]) * y.at[i];
}

inline double Total(const double* sums) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void SetMiddles(const RefineGroup& group, const RefineRow& row) {
  float* middles = group.middles + row.first_level;
  for (int32_t i = 1; i < row.count; i++) middles[i] = 0.5f * (row.levels[i - 1] + row.levels[i]);
}

// Index of the level nearest to `value`: the number of middles below it.
inline int32_t Nearest(const float* middles, int32_t count, float value) {
  int32_t code = 0;
  for (int32_t step = count / 2; step > 0; step /= 2) {  // count is a power of two
    const int32_t next = code + step;
    code = value > middles[next] ? next : code;
  }
  return code;
}

// Solves the symmetric positive definite system [n][n + 1] in place, of which the lower triangle and the last column
// are read; the solution replaces the last column. False, and the last column unusable, where it is singular.
bool Solve(double* a, int32_t n) {
  const int32_t stride = n + 1;
  for (int32_t i = 0; i < n; i++) {
    for (int32_t j = 0; j <= i; j++) {
      double sum = a[i * stride + j];
      for (int32_t t = 0; t < j; t++) sum -= a[i * stride + t] * a[j * stride + t];
      if (i > j) {
        a[i * stride + j] = sum / a[j * stride + j];
      } else if (sum > 0) {
        a[i * stride + i] = __builtin_sqrt(sum);
      } else {
        return false;
      }
    }
  }
  for (int32_t i = 0; i < n; i++) {
    double sum = a[i * stride + n];
    for (int32_t t = 0; t < i; t++) sum -= a[i * stride + t] * a[t * stride + n];
    a[i * stride + n] = sum / a[i * stride + i];
  }
  for (int32_t i = n - 1; i >= 0; i--) {
    double sum = a[i * stride + n];
    for (int32_t t = i + 1; t < n; t++) sum -= a[t * stride + i] * a[t * stride + n];
    a[i * stride + n] = sum / a[i * stride + i];
  }
  return true;
}

// Brings the levels into ascending order and renames the codes; codes of equal levels keep their order.
void Sort(RefineRow& row, int32_t columns) {
  uint8_t order[256], renamed[256];
  float sorted[256];
  for (int32_t i = 0; i < row.count; i++) {
    int32_t at = i;
    for (; at > 0 && row.levels[order[at - 1]] > row.levels[i]; at--) order[at] = order[at - 1];
    order[at] = static_cast<uint8_t>(i);
  }
  for (int32_t i = 0; i < row.count; i++) {
    sorted[i] = row.levels[order[i]];
    renamed[order[i]] = static_cast<uint8_t>(i);
  }
  for (int32_t i = 0; i < row.count; i++) row.levels[i] = sorted[i];
  for (int32_t k = 0; k < columns; k++) row.codes[k] = renamed[row.codes[k]];
}

// Of a code's level: the free one that it is, or is the negative of.
inline bool IsNegative(const RefineRow& row, int32_t code) { return code >= row.free; }
inline int32_t FreeLevel(const RefineRow& row, int32_t code) {
  return IsNegative(row, code) ? row.count - 1 - code : code;
}

void ClearTerms(const RefineGroup& group) {
  for (int64_t i = 0; i < At(group, group.panels, 0); i++) group.counts[i] = 0;
}

// A term after the others of a row that is a sum of its own.
inline void Append(const RefineGroup& group, int32_t panel, int32_t row, Term term) {
  int32_t& runs = group.counts[At(group, panel, row)];
  Run& run = *Runs(group, panel, row);
  if (runs == 0) run = {0, 0};
  Terms(group, panel, row)[run.terms++] = term;
  runs = 1;
}

void Multiply(const RefineGroup& group) {
  ClearTerms(group);
  for (int32_t p = 0; p < group.panels; p++) {
    for (int32_t r = 0; r < group.size; r++) {
      const float* target = group.target[At(group, p, r)].at;
      for (int32_t k = 0; k < PanelWidth(group, p); k++) Append(group, p, r, {k, target[k]});
    }
  }
  SumUp(group, {group.pull, group.size, false});
}

// The units of a panel's columns as terms, sorted by the free levels of their codes.
void SortByLevel(const RefineGroup& group, int32_t panel, int32_t r) {
  const RefineRow& row = group.rows[r];
  const int32_t width = PanelWidth(group, panel);
  const uint8_t* codes = row.codes + panel * kPanel;
  const float* unit = group.unit[At(group, panel, r)].at;
  Term* terms = Terms(group, panel, r);
  Run* runs = Runs(group, panel, r);
  uint8_t next[256] = {};
  for (int32_t k = 0; k < width; k++) next[FreeLevel(row, codes[k])]++;
  int32_t start = 0, count = 0;
  for (int32_t level = 0; level < row.free; level++) {
    const uint8_t size = next[level];
    if (size > 0) runs[count++] = {static_cast<uint8_t>(level), size};
    next[level] = static_cast<uint8_t>(start);
    start += size;
  }
  for (int32_t k = 0; k < width; k++) {
    terms[next[FreeLevel(row, codes[k])]++] = {k, IsNegative(row, codes[k]) ? -unit[k] : unit[k]};
  }
  group.counts[At(group, panel, r)] = count;
}

void Project(const RefineGroup& group) {
  for (int32_t p = 0; p < group.panels; p++) {
    for (int32_t r = 0; r < group.size; r++) SortByLevel(group, p, r);
  }
  SumUp(group, {group.products, group.levels, true});
}

void FitLevels(const RefineGroup& group, int32_t r) {
  RefineRow& row = group.rows[r];
  const int32_t count = row.free, stride = count + 1;
  double* a = group.system;
  for (int32_t i = 0; i < count * stride; i++) a[i] = 0;
  double sums[256][kLanes] = {};
  for (int32_t p = 0; p < group.panels; p++) {
    const int32_t width = PanelWidth(group, p);
    const uint8_t* codes = row.codes + p * kPanel;
    const float* unit = group.unit[At(group, p, r)].at;
    const Panel* products = group.products + static_cast<int64_t>(p) * group.levels + row.first_level;
    for (int32_t k = 0; k < width; k++) {
      const int32_t level = FreeLevel(row, codes[k]);
      const double factor = IsNegative(row, codes[k]) ? -unit[k] : unit[k];
      for (int32_t i = level; i < count; i++) a[i * stride + level] += factor * products[i].at[k];
    }
    for (int32_t i = 0; i < count; i++) AddProducts(products[i], group.target[At(group, p, r)], width, sums[i]);
  }
  double trace = 0;
  for (int32_t i = 0; i < count; i++) {
    a[i * stride + count] = Total(sums[i]);
    trace += a[i * stride + i];
  }
  const double ridge = kRidge * trace / count;
  for (int32_t i = 0; i < count; i++) {
    a[i * stride + i] += ridge;
    a[i * stride + count] += ridge * row.levels[i];
  }
  if (!Solve(a, count)) return;
  for (int32_t i = 0; i < count; i++) row.levels[i] = static_cast<float>(a[i * stride + count]);
  for (int32_t i = count; i < row.count; i++) row.levels[i] = -row.levels[row.count - 1 - i];
}

void SetResidual(const RefineGroup& group, int32_t r) {
  const RefineRow& row = group.rows[r];
  Term terms[256];
  for (int32_t i = 0; i < row.free; i++) terms[i] = {i, -row.levels[i]};
  for (int32_t p = 0; p < group.panels; p++) {
    const Panel* products = group.products + static_cast<int64_t>(p) * group.levels + row.first_level;
    Panel& residual = group.residual[At(group, p, r)];
    residual = group.pull[At(group, p, r)];
    AddTerms(products->at, kPanel, terms, row.free, &residual);
  }
}

// Coordinate descent on the codes of one panel, whose residuals are up to date. What the changes mean for the other
// panels is left to the terms.
void SweepPanel(const RefineGroup& group, int32_t panel) {
  Panel tile[1][kPanel];
  CopyTiles(group, panel, panel, panel + 1, tile);
  Panel* residual = group.residual + At(group, panel, 0);
  const Panel* unit = group.unit + At(group, panel, 0);
  for (int32_t r = 0; r < group.size; r++) group.counts[At(group, panel, r)] = 0;
  for (int32_t first = 0; first < group.size; first += kInterleaved) {
    const int32_t last = first + kInterleaved < group.size ? first + kInterleaved : group.size;
    for (int32_t k = 0; k < PanelWidth(group, panel); k++) {
      for (int32_t r = first; r < last; r++) {
        RefineRow& row = group.rows[r];
        if (row.settled) continue;
        uint8_t& code = row.codes[panel * kPanel + k];
        const float level = row.levels[code];
        const float wanted = level + residual[r].at[k] / (tile[0][k].at[k] * unit[r].at[k]);
        const int32_t nearest = Nearest(group.middles + row.first_level, row.count, wanted);
        if (nearest == code) continue;
        const Term term = {k, (level - row.levels[nearest]) * unit[r].at[k]};
        AddTerms(tile[0]->at, kPanel, &term, 1, residual + r);
        Append(group, panel, r, term);
        code = static_cast<uint8_t>(nearest);
        row.changes++;
      }
    }
  }
}

// Calls work(first row, rows, what they share) for rows that are searched together: neighbours of the same widths.
template <typename Work>
void EachTogether(const RefineGroup& group, const Work& work) {
  const auto same = [](const RefineRow& a, const RefineRow& b) { return a.count == b.count && a.memory == b.memory; };
  for (int32_t first = 0, last; first < group.size; first = last) {
    const RefineRow& row = group.rows[first];
    last = first + 1;
    while (last < group.size && last < first + kTogether && same(group.rows[last], row)) last++;
    LaneRows rows = {__builtin_ctz(row.count) - row.memory, row.memory, {}};
    for (int32_t w = 0; w < row.count; w++) {
      for (int32_t i = 0; i < last - first; i++) rows.levels[w][i] = group.rows[first + i].levels[w];
    }
    work(first, last - first, rows);
  }
}

// The part of a panel of some rows that is a lane: value k of row i to lane[k][i]. Rows that there are none of get 1.
inline void LoadLane(const Panel* panel, int32_t column, int32_t rows, Floats* lane) {
  for (int32_t k = 0; k < kLane; k++) {
    lane[k] = Floats{} + 1.0f;
    for (int32_t i = 0; i < rows; i++) lane[k][i] = panel[i].at[column + k];
  }
}

// The same as SweepPanel where codes are windows: a lane at a time gets those that are found to cost least, if they
// cost less.
void SweepLanes(const RefineGroup& group, int32_t panel) {
  Panel tile[1][kPanel];
  CopyTiles(group, panel, panel, panel + 1, tile);
  Panel* residual = group.residual + At(group, panel, 0);
  const Panel* unit = group.unit + At(group, panel, 0);
  const int32_t lanes = PanelWidth(group, panel) / kLane;
  Lane lane[kPanel / kLane];
  float inverse[kPanel / kLane][kLane][kLane];
  for (int32_t l = 0; l < lanes; l++) InvertLane(tile[0], l * kLane, lane[l].factor, inverse[l]);
  for (int32_t r = 0; r < group.size; r++) group.counts[At(group, panel, r)] = 0;
  EachTogether(group, [&](int32_t first, int32_t count, const LaneRows& rows) {
    bool settled = true;
    for (int32_t i = 0; i < count; i++) settled = settled && group.rows[first + i].settled;
    if (settled) return;
    for (int32_t l = 0; l < lanes; l++) {
      const int32_t column = l * kLane;
      Floats pull[kLane];
      Numbers now[kLane] = {}, found[kLane] = {};
      LoadLane(residual + first, column, count, pull);
      LoadLane(unit + first, column, count, lane[l].unit);
      for (int32_t k = 0; k < kLane; k++) {
        for (int32_t i = 0; i < count; i++) now[k][i] = group.rows[first + i].codes[panel * kPanel + column + k];
        lane[l].target[k] = lane[l].unit[k] * LevelOf(rows, now[k]);
        for (int32_t j = 0; j < kLane; j++) lane[l].target[k] += inverse[l][k][j] * pull[j];
      }
      const Numbers better = FindWindows(lane[l], rows, found) < CostOf(lane[l], rows, now);
      for (int32_t i = 0; i < count; i++) {
        RefineRow& row = group.rows[first + i];
        if (!better[i] || row.settled) continue;
        for (int32_t k = 0; k < kLane; k++) {
          if (now[k][i] == found[k][i]) continue;
          const float difference = row.levels[now[k][i]] - row.levels[found[k][i]];
          const Term term = {column + k, difference * lane[l].unit[k][i]};
          AddTerms(tile[0]->at, kPanel, &term, 1, residual + first + i);
          Append(group, panel, first + i, term);
          row.codes[panel * kPanel + column + k] = static_cast<uint8_t>(found[k][i]);
          row.changes++;
        }
      }
    }
  });
}

// Takes panels together: work(panel) for one after the other, which may leave terms for all others. Before it the sums
// of the panel get what was left the last time in the panels after it, then what is left now in those before it.
template <typename Work>
void InTurn(const RefineGroup& group, Sums sums, const Work& work) {
  for (int32_t begin = 0; begin < group.panels; begin += sums.Together()) {
    const int32_t end = begin + sums.Together() < group.panels ? begin + sums.Together() : group.panels;
    for (int32_t p = begin; p < end; p++) AddPanels(group, p + 1, end, p, p + 1, sums);
    AddPanels(group, end, group.panels, begin, end, sums);
    AddPanels(group, 0, begin, begin, end, sums);
    for (int32_t p = begin; p < end; p++) {
      AddPanels(group, begin, p, p, p + 1, sums);
      work(p);
    }
  }
}

// One round of coordinate descent; false if it changed nothing.
bool Sweep(const RefineGroup& group) {
  for (int32_t r = 0; r < group.size; r++) group.rows[r].changes = 0;
  InTurn(group, {group.residual, group.size, false},
         [&](int32_t panel) { (group.windows ? SweepLanes : SweepPanel)(group, panel); });
  bool changed = false;
  for (int32_t r = 0; r < group.size; r++) {
    group.rows[r].settled = group.rows[r].changes == 0;
    changed = changed || !group.rows[r].settled;
  }
  return changed;
}

// Error feedback in one panel, whose targets are up to date.
void FeedBackPanel(const RefineGroup& group, int32_t panel) {
  Panel tile[1][kPanel];
  CopyTiles(group, panel, panel, panel + 1, tile);
  Panel* target = group.target + At(group, panel, 0);
  const Panel* unit = group.unit + At(group, panel, 0);
  for (int32_t first = 0; first < group.size; first += kInterleaved) {
    const int32_t last = first + kInterleaved < group.size ? first + kInterleaved : group.size;
    for (int32_t k = 0; k < PanelWidth(group, panel); k++) {
      for (int32_t r = first; r < last; r++) {
        const RefineRow& row = group.rows[r];
        const float value = target[r].at[k];
        const int32_t code = Nearest(group.middles + row.first_level, row.count, value / unit[r].at[k]);
        const Term term = {k, -((value - row.levels[code] * unit[r].at[k]) / tile[0][k].at[k])};
        AddTerms(tile[0]->at, kPanel, &term, 1, target + r);  // to the columns that are done, too: nobody reads those
        Append(group, panel, r, term);
        row.codes[panel * kPanel + k] = static_cast<uint8_t>(code);
      }
    }
  }
}

// The same where codes are windows, a lane at a time.
void FeedBackLanes(const RefineGroup& group, int32_t panel) {
  Panel tile[1][kPanel];
  if (group.matrix) CopyTiles(group, panel, panel, panel + 1, tile);
  Panel* target = group.target + At(group, panel, 0);
  const Panel* unit = group.unit + At(group, panel, 0);
  EachTogether(group, [&](int32_t first, int32_t count, const LaneRows& rows) {
    for (int32_t column = 0; column < PanelWidth(group, panel); column += kLane) {
      Lane lane;
      Numbers windows[kLane] = {};
      LoadLane(target + first, column, count, lane.target);
      LoadLane(unit + first, column, count, lane.unit);
      for (int32_t k = 0; k < kLane; k++) {
        for (int32_t i = 0; i < kLane; i++) {
          lane.factor[k][i] = group.matrix ? tile[0][column + k].at[column + i] : k == i ? 1.0f : 0.0f;
        }
      }
      FindWindows(lane, rows, windows);
      for (int32_t i = 0; i < count; i++) {
        const RefineRow& row = group.rows[first + i];
        for (int32_t k = 0; k < kLane; k++) {
          row.codes[panel * kPanel + column + k] = static_cast<uint8_t>(windows[k][i]);
          if (!group.matrix) continue;
          const float error = target[first + i].at[column + k] - row.levels[windows[k][i]] * lane.unit[k][i];
          const Term term = {column + k, -(error / lane.factor[k][k])};
          AddTerms(tile[0]->at, kPanel, &term, 1, target + first + i);
          Append(group, panel, first + i, term);
        }
      }
    }
  });
}

double Error(const RefineGroup& group, int32_t r) {
  const RefineRow& row = group.rows[r];
  double error = 0;
  for (int32_t p = 0; p < group.panels; p++) {
    const int64_t at = At(group, p, r);
    for (int32_t k = 0; k < PanelWidth(group, p); k++) {
      const float level = row.levels[row.codes[p * kPanel + k]];
      const float difference = group.target[at].at[k] - group.unit[at].at[k] * level;
      error += static_cast<double>(group.residual[at].at[k]) * difference;
    }
  }
  return error > 0 ? error : 0;
}

}  // namespace

void SKIM_FEEDBACK_ROWS(const RefineGroup& group) {
  ClearTerms(group);
  if (!group.windows) {
    for (int32_t r = 0; r < group.size; r++) SetMiddles(group, group.rows[r]);
  }
  InTurn(group, {group.target, group.size, false},
         [&](int32_t panel) { (group.windows ? FeedBackLanes : FeedBackPanel)(group, panel); });
}

void SKIM_REFINE_ROWS(const RefineGroup& group, int32_t rounds, int32_t sweeps, bool fit) {
  Multiply(group);
  for (int32_t round = 0; round < rounds; round++) {
    Project(group);
    for (int32_t r = 0; r < group.size; r++) {
      RefineRow& row = group.rows[r];
      if (fit) FitLevels(group, r);
      SetResidual(group, r);
      if (!group.windows) {
        if (fit) Sort(row, group.columns);  // now that nothing needs the products, which follow the old codes
        SetMiddles(group, row);
      }
      row.settled = false;
    }
    ClearTerms(group);
    for (int32_t sweep = 0; sweep < sweeps; sweep++) {
      if (!Sweep(group)) break;
    }
  }
  for (int32_t p = 0; p < group.panels; p++) {
    AddPanels(group, p + 1, group.panels, p, p + 1, {group.residual, group.size, false});
  }
  for (int32_t r = 0; r < group.size; r++) group.rows[r].error = Error(group, r);
}

}  // namespace skim
