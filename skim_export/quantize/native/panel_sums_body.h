// Sums of multiples of the matrix's rows, a panel of columns at a time. Part of row_refine_body.h.
//
// What a column adds to a sum is kept as a term until the panel of the sum is needed. Then a tile of the matrix is
// brought into the cache and the terms of all rows of the group are added, the sums held in registers. Every sum takes
// its terms one after the other in the order of the columns, a product and an addition each: no bit depends on tiles,
// groups or vectors.

#if defined(__AVX512F__)
constexpr int32_t kVector = 16;
#elif defined(__AVX__)
constexpr int32_t kVector = 8;
#else
constexpr int32_t kVector = 4;
#endif
constexpr int32_t kHeld = kPanel / kVector < 8 ? kPanel / kVector : 8;  // sums in registers, in vectors

// Panels that one reading of the terms serves, so that these, too, are read from memory a few times only: at most
// kMostTogether, and as many as have kSumsTogether sums, which take half of the L2 cache.
constexpr int32_t kMostTogether = 4;
constexpr int32_t kSumsTogether = 2048;

typedef float Vec __attribute__((vector_size(4 * kVector)));
typedef float UnalignedVec __attribute__((vector_size(4 * kVector), aligned(4)));

// sums += the terms; rows of the matrix, or of a tile of it, begin `stride` floats apart.
inline void AddTerms(const float* matrix, int64_t stride, const Term* terms, int32_t count, Panel* sums) {
  for (int32_t part = 0; part < kPanel; part += kHeld * kVector) {
    Vec held[kHeld];
    Vec* const out = reinterpret_cast<Vec*>(sums->at + part);
#pragma GCC unroll 8
    for (int32_t i = 0; i < kHeld; i++) held[i] = out[i];
    for (int32_t t = 0; t < count; t++) {
      const float* h = matrix + terms[t].column * stride + part;
#pragma GCC unroll 8
      for (int32_t i = 0; i < kHeld; i++) {
        held[i] += terms[t].factor * *reinterpret_cast<const UnalignedVec*>(h + i * kVector);
      }
    }
#pragma GCC unroll 8
    for (int32_t i = 0; i < kHeld; i++) out[i] = held[i];
  }
}

inline int32_t PanelWidth(const RefineGroup& group, int32_t panel) {
  const int32_t left = group.columns - panel * kPanel;
  return left < kPanel ? left : kPanel;
}

// The matrix from row `from` * kPanel and column `to` * kPanel on.
inline const float* Corner(const RefineGroup& group, int32_t from, int32_t to) {
  return group.matrix + static_cast<int64_t>(from) * kPanel * group.columns + to * kPanel;
}

// Copies the tiles of a panel's rows and the columns of the panels to..to_end-1. Rows of the matrix often begin a
// multiple of the cache's size apart, so that they would take each other's place in it.
void CopyTiles(const RefineGroup& group, int32_t from, int32_t to, int32_t to_end, Panel (*tiles)[kPanel]) {
  const float* h = Corner(group, from, to);
  const int32_t height = PanelWidth(group, from);
  for (int32_t k = 0; k < height; k++, h += group.columns) {
    for (int32_t p = to; p < to_end; p++) {
      const float* part = h + (p - to) * kPanel;
      Panel& copy = tiles[p - to][k];
      const int32_t width = PanelWidth(group, p);
      if (width == kPanel) {
        __builtin_memcpy(copy.at, part, sizeof copy);
      } else {
        for (int32_t j = 0; j < kPanel; j++) copy.at[j] = j < width ? part[j] : 0;
      }
    }
  }
}

inline int64_t At(const RefineGroup& group, int32_t panel, int32_t row) {
  return static_cast<int64_t>(panel) * group.size + row;
}

inline Term* Terms(const RefineGroup& group, int32_t panel, int32_t row) {
  return group.terms + At(group, panel, row) * kPanel;
}

inline Run* Runs(const RefineGroup& group, int32_t panel, int32_t row) {
  return group.runs + At(group, panel, row) * kPanel;
}

// Terms of all rows in a panel; stops to count when there are many.
int32_t FewTerms(const RefineGroup& group, int32_t panel) {
  int32_t terms = 0;
  for (int32_t r = 0; r < group.size && terms < kPanel; r++) {
    const int32_t runs = group.counts[At(group, panel, r)];
    for (int32_t i = 0; i < runs; i++) terms += Runs(group, panel, r)[i].terms;
  }
  return terms;
}

// The sums of all panels, [panels][per_panel].
struct Sums {
  Panel* panels;
  int32_t per_panel;
  bool by_level;  // a sum for each level, not for each row

  int32_t Together() const {
    const int32_t fit = kSumsTogether / per_panel;
    return fit < 1 ? 1 : fit < kMostTogether ? fit : kMostTogether;
  }
};

// Adds the terms of one panel to the sums of another. Rows of `matrix` begin `stride` floats apart.
void AddPanel(const RefineGroup& group, int32_t from, int32_t to, const float* matrix, int64_t stride, Sums sums) {
  for (int32_t r = 0; r < group.size; r++) {
    const int32_t runs = group.counts[At(group, from, r)];
    const Run* run = Runs(group, from, r);
    const Term* next = Terms(group, from, r);
    Panel* out =
        sums.panels + static_cast<int64_t>(to) * sums.per_panel + (sums.by_level ? group.rows[r].first_level : r);
    for (int32_t i = 0; i < runs; next += run[i++].terms) {
      AddTerms(matrix, stride, next, run[i].terms, out + run[i].sum);
    }
  }
}

// Adds the terms of the panels from..from_end-1 to the sums of a few panels to..to_end-1.
void AddPanels(const RefineGroup& group, int32_t from, int32_t from_end, int32_t to, int32_t to_end, Sums sums) {
  Panel tiles[kMostTogether][kPanel];
  for (; from < from_end; from++) {
    const int32_t terms = FewTerms(group, from);
    if (terms == 0) continue;
    const bool copied = terms >= kPanel || PanelWidth(group, to_end - 1) < kPanel;
    if (copied) CopyTiles(group, from, to, to_end, tiles);
    for (int32_t p = to; p < to_end; p++) {
      if (copied) {
        AddPanel(group, from, p, tiles[p - to]->at, kPanel, sums);
      } else {
        AddPanel(group, from, p, Corner(group, from, p), group.columns, sums);
      }
    }
  }
}

// All sums, from the terms of all panels.
void SumUp(const RefineGroup& group, Sums sums) {
  for (int64_t i = 0; i < static_cast<int64_t>(group.panels) * sums.per_panel; i++) sums.panels[i] = {};
  for (int32_t to = 0; to < group.panels; to += sums.Together()) {
    const int32_t end = to + sums.Together() < group.panels ? to + sums.Together() : group.panels;
    AddPanels(group, 0, group.panels, to, end, sums);
  }
}
