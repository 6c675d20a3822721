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

// Rows of the matrix often begin a multiple of the cache's size apart, so that they take each other's place in it.
void CopyTile(const RefineGroup& group, int32_t from, int32_t to, Panel* tile) {
  const float* h = Corner(group, from, to);
  const int32_t height = PanelWidth(group, from), width = PanelWidth(group, to);
  for (int32_t k = 0; k < height; k++, h += group.columns) {
    if (width == kPanel) {
      __builtin_memcpy(tile[k].at, h, sizeof(Panel));
    } else {
      for (int32_t j = 0; j < kPanel; j++) tile[k].at[j] = j < width ? h[j] : 0;
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

// Adds the terms of the panels begin..end-1 to the sums of panel `to`; those of row r begin at sums[first(r)].
template <typename First>
void AddPanels(const RefineGroup& group, int32_t begin, int32_t end, int32_t to, const First& first, Panel* sums) {
  Panel tile[kPanel];
  for (int32_t from = begin; from < end; from++) {
    const int32_t terms = FewTerms(group, from);
    if (terms == 0) continue;
    const float* matrix = Corner(group, from, to);
    int64_t stride = group.columns;
    if (terms >= kPanel || PanelWidth(group, to) < kPanel) {
      CopyTile(group, from, to, tile);
      matrix = tile->at;
      stride = kPanel;
    }
    for (int32_t r = 0; r < group.size; r++) {
      const int32_t runs = group.counts[At(group, from, r)];
      const Run* run = Runs(group, from, r);
      const Term* next = Terms(group, from, r);
      for (int32_t i = 0; i < runs; next += run[i++].terms) {
        AddTerms(matrix, stride, next, run[i].terms, sums + first(r) + run[i].sum);
      }
    }
  }
}
