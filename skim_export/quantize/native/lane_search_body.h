// The best windows of a lane: eight columns whose codes overlap in a circle (docs/format.md, "Windows"). Part of
// row_refine_body.h.
//
// The window of a column has `bits` bits of its own above the `memory` bits that stand before them, the top bits of the
// columns before; what follows sees the top `memory` bits of the window, its state. So the windows of a lane are a path
// through a trellis that ends in the state where it began, and dynamic programming finds it (Viterbi). The columns are
// coupled, too: the error of one is made up for in those to come, differently for each path, so every path has its own
// targets (per-survivor processing: Raheli, Polydoros and Tzou, IEEE Transactions on Communications, 1995). That makes
// the search a very good one, not an exact one; its cost is exact.

constexpr int32_t kLane = 8;      // columns
constexpr int32_t kTogether = 8;  // rows that are searched at once
constexpr int32_t kMostStates = 1 << kMostMemory;
constexpr float kDead = 1e30f;  // costs more than any path: does not begin where it should

typedef float Floats __attribute__((vector_size(4 * kTogether)));
typedef int32_t Numbers __attribute__((vector_size(4 * kTogether)));

struct Lane {
  float factor[kLane][kLane];  // of the inverse of the coupling, upper triangular
  Floats target[kLane];
  Floats unit[kLane];
};

struct LaneRows {
  int32_t bits, memory;         // of a code; a window has both
  Floats levels[kMostWindows];  // by window
};

inline Floats LevelOf(const LaneRows& rows, Numbers windows) {
  Floats level;
  for (int32_t i = 0; i < kTogether; i++) level[i] = rows.levels[windows[i]][i];
  return level;
}

// What windows cost: the sum of the squared errors, the error of each column made up for in those to come.
Floats CostOf(const Lane& lane, const LaneRows& rows, const Numbers* windows) {
  Floats target[kLane], cost = {};
  __builtin_memcpy(target, lane.target, sizeof target);
  for (int32_t k = 0; k < kLane; k++) {
    const Floats error = (target[k] - lane.unit[k] * LevelOf(rows, windows[k])) / lane.factor[k][k];
    cost += error * error;
    for (int32_t i = k + 1; i < kLane; i++) target[i] -= error * lane.factor[k][i];
  }
  return cost;
}

struct Paths {
  Floats cost[kMostStates];
  Floats target[kMostStates][kLane];
};

// One column further: the best way into the states first..last. `levels`, by window, are multiplied by the unit;
// `chosen` gets the window that leads into each state.
inline void ExtendPaths(const Lane& lane, const LaneRows& rows, int32_t column, const Floats* levels, int32_t first,
                        int32_t last, const Paths& from, Paths* to, Numbers* chosen) {
  const int32_t states = 1 << rows.memory, branches = 1 << rows.bits;
  const int32_t sources = states < branches ? states : branches;
  const float inverse = 1 / lane.factor[column][column];
  for (int32_t state = first; state <= last; state++) {
    Floats cost = Floats{} + __builtin_inff(), error = {}, carried[kLane] = {};
    Numbers window = {};
    for (int32_t source = 0; source < sources; source++) {
      const int32_t before = ((state << rows.bits) | source) & (states - 1);
      Numbers better = {};
      for (int32_t low = source; low < branches; low += states) {
        const int32_t candidate = (state << rows.bits) | low;
        const Floats off = (from.target[before][column] - levels[candidate]) * inverse;
        const Floats sum = from.cost[before] + off * off;
        const Numbers is_better = sum < cost;
        cost = is_better ? sum : cost;
        error = is_better ? off : error;
        window = is_better ? Numbers{} + candidate : window;
        better |= is_better;
      }
      for (int32_t i = column + 1; i < kLane; i++) carried[i] = better ? from.target[before][i] : carried[i];
    }
    to->cost[state] = cost;
    chosen[state] = window;
    for (int32_t i = column + 1; i < kLane; i++) to->target[state][i] = carried[i] - error * lane.factor[column][i];
  }
}

// The windows that cost least, as far as is found, and what they cost.
Floats FindWindows(const Lane& lane, const LaneRows& rows, Numbers* windows) {
  const int32_t states = 1 << rows.memory;
  Floats levels[kLane][kMostWindows];
  for (int32_t k = 0; k < kLane; k++) {
    for (int32_t w = 0; w < 1 << (rows.bits + rows.memory); w++) levels[k][w] = lane.unit[k] * rows.levels[w];
  }
  Floats least = Floats{} + __builtin_inff();
  for (int32_t start = 0; start < states; start++) {
    Paths paths[2];
    Numbers chosen[kLane][kMostStates];
    for (int32_t state = 0; state < states; state++) {
      paths[0].cost[state] = Floats{} + (state == start ? 0.0f : kDead);
      __builtin_memcpy(paths[0].target[state], lane.target, sizeof lane.target);
    }
    for (int32_t k = 0; k < kLane; k++) {
      const bool end = k == kLane - 1;
      ExtendPaths(lane, rows, k, levels[k], end ? start : 0, end ? start : states - 1, paths[k % 2],
                  &paths[(k + 1) % 2], chosen[k]);
    }
    const Floats cost = paths[kLane % 2].cost[start];
    const Numbers better = cost < least;
    least = better ? cost : least;
    for (int32_t i = 0; i < kTogether; i++) {
      if (!better[i]) continue;
      int32_t state = start;
      for (int32_t k = kLane - 1; k >= 0; k--) {
        windows[k][i] = chosen[k][state][i];
        state = windows[k][i] & (states - 1);
      }
    }
  }
  return least;
}

// Of the coupling of a lane's columns, `first` and on in a tile, symmetric and positive definite: its inverse, and the
// upper triangular U with U^T U = the inverse.
void InvertLane(const Panel* tile, int32_t first, float (*factor)[kLane], float (*inverse)[kLane]) {
  double v[kLane][kLane] = {}, u[kLane][kLane] = {};  // the coupling is v v^T, both upper triangular, u = v^-1
  for (int32_t j = kLane - 1; j >= 0; j--) {
    for (int32_t i = j; i >= 0; i--) {
      double sum = tile[first + i].at[first + j];
      for (int32_t t = j + 1; t < kLane; t++) sum -= v[i][t] * v[j][t];
      v[i][j] = i == j ? __builtin_sqrt(sum) : sum / v[j][j];
    }
  }
  for (int32_t j = 0; j < kLane; j++) {
    u[j][j] = 1 / v[j][j];
    for (int32_t i = j - 1; i >= 0; i--) {
      double sum = 0;
      for (int32_t t = i + 1; t <= j; t++) sum -= v[i][t] * u[t][j];
      u[i][j] = sum / v[i][i];
    }
  }
  for (int32_t i = 0; i < kLane; i++) {
    for (int32_t j = 0; j < kLane; j++) {
      double sum = 0;
      for (int32_t t = 0; t <= i && t <= j; t++) sum += u[t][i] * u[t][j];
      factor[i][j] = static_cast<float>(u[i][j]);
      inverse[i][j] = static_cast<float>(sum);
    }
  }
}
