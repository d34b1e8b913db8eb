// Loops over weights and the scores that mask them: W m(s) and the gradient of s.
#pragma once

#include "parallel.h"
#include "row_blocks.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// --- loops, one copy an instruction set -----------------------------------------------------------------------------

// Which mask a score gives; C is what scores are compared in.
template <typename C>
struct Select {
  C threshold, scale;
  Levels levels;
};

template <typename T, typename S>
MASKCL_INLINE void select_row(const T* w, const S* s, T* y, int64_t count, const Select<compute_t<S>>& p) {
  using C = compute_t<T>;
  using D = compute_t<S>;
  const D threshold = p.threshold, scale = p.scale;
  dispatch_levels(p.levels, [&]<Levels L>() __attribute__((always_inline)) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      y[i] = static_cast<T>(select_weight<L>(static_cast<C>(w[i]), static_cast<D>(s[i]), threshold, scale));
  });
}

// ds = g W slope; W is ones where it is null.
template <typename T, typename S>
MASKCL_INLINE void score_grad_row(const T* g, const T* w, const S* s, S* ds, int64_t count,
                                  const Select<compute_t<S>>& p) {
  using C = compute_t<T>;
  using D = compute_t<S>;
  const D threshold = p.threshold, scale = p.scale;
  if (p.levels == Levels::soft) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      ds[i] = static_cast<S>(static_cast<C>(g[i]) * (w ? static_cast<C>(w[i]) : C(1)) *
                             static_cast<C>(score_slope<Levels::soft>(static_cast<D>(s[i]), threshold, scale)));
  } else if (w) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i) ds[i] = static_cast<S>(static_cast<C>(g[i]) * static_cast<C>(w[i]));
  } else {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i) ds[i] = static_cast<S>(static_cast<C>(g[i]));
  }
}

// Cloned functions cannot be templates, so each pair of dtypes names its own.
#define MASKCL_PAIR(CLONES, T, S)                                                                     \
  [[maybe_unused]] CLONES void run_select(const T* w, const S* s, T* y, int64_t count,                \
                                          const Select<compute_t<S>>& p) {                            \
    select_row<T, S>(w, s, y, count, p);                                                              \
  }                                                                                                   \
  [[maybe_unused]] CLONES void run_score_grad(const T* g, const T* w, const S* s, S* ds, int64_t count, \
                                              const Select<compute_t<S>>& p) {                        \
    score_grad_row<T, S>(g, w, s, ds, count, p);                                                      \
  }
MASKCL_PAIR(MASKCL_CLONES, float, float)
MASKCL_PAIR(MASKCL_CLONES, BFloat16, float)
MASKCL_PAIR(MASKCL_CLONES, BFloat16, BFloat16)
MASKCL_PAIR(, Half, float)  // its conversions do not vectorise
MASKCL_PAIR(, Half, Half)
MASKCL_PAIR(, double, double)  // for checks, not for speed
MASKCL_PAIR(, double, float)

// --- work division --------------------------------------------------------------------------------------------------

template <typename C>
Select<C> select_of(const char* op, const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels,
                    double threshold, bool inclusive, double scale) {
  const Levels parsed = parse_levels(levels, inclusive);
  Select<C> p{static_cast<C>(threshold_for(scores.scalar_type(), parsed, threshold)), static_cast<C>(scale), parsed};
  if (parsed == Levels::topk) p.threshold = static_cast<C>(kth_value(op, kth));
  return p;
}

template <typename T, typename S>
void select_into(const T* w, const S* s, T* y, int64_t count, const Select<compute_t<S>>& p) {
  parallel(count, 1, [&](int64_t begin, int64_t end) { run_select(w + begin, s + begin, y + begin, end - begin, p); });
}

// A block of a weight of `width` columns, into rows that are `stride` elements apart.
template <typename T, typename S>
void select_block(const T* w, const S* s, T* y, int64_t stride, const Block& block, int64_t width,
                  const Select<compute_t<S>>& p) {
  const int64_t from = block.row * width + block.column, columns = block.columns;
  if (columns == width && stride == width) return select_into(w + from, s + from, y, block.rows * columns, p);
  parallel(block.rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      run_select(w + from + r * width, s + from + r * width, y + r * stride, columns, p);
  });
}

template <typename T, typename S>
void score_grad_into(const T* g, const T* w, const S* s, S* ds, int64_t count, const Select<compute_t<S>>& p) {
  parallel(count, 1, [&](int64_t begin, int64_t end) {
    run_score_grad(g + begin, w ? w + begin : nullptr, s + begin, ds + begin, end - begin, p);
  });
}

}  // namespace
}  // namespace maskcl
