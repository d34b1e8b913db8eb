// Masks of single weights from scores: W m(s), its backward, the k-th largest score, and linear layers by row blocks.

#include <algorithm>
#include <mutex>
#include <numeric>
#include <vector>

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

template <typename S>
MASKCL_INLINE void mask_row(const S* s, S* y, int64_t count, const Select<compute_t<S>>& p) {
  using C = compute_t<S>;
  const C threshold = p.threshold, scale = p.scale;
  dispatch_levels(p.levels, [&]<Levels L>() __attribute__((always_inline)) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      y[i] = static_cast<S>(mask_value<L>(static_cast<C>(s[i]), threshold, scale));
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
#define MASKCL_PAIR(CLONES, T, S)                                                                                     \
  CLONES void run_select(const T* w, const S* s, T* y, int64_t count, const Select<compute_t<S>>& p) {                \
    select_row<T, S>(w, s, y, count, p);                                                                              \
  }                                                                                                                   \
  CLONES void run_score_grad(const T* g, const T* w, const S* s, S* ds, int64_t count, const Select<compute_t<S>>& p) { \
    score_grad_row<T, S>(g, w, s, ds, count, p);                                                                      \
  }
#define MASKCL_MASK(CLONES, S)                                                              \
  CLONES void run_mask(const S* s, S* y, int64_t count, const Select<compute_t<S>>& p) {    \
    mask_row<S>(s, y, count, p);                                                            \
  }
MASKCL_PAIR(MASKCL_CLONES, float, float)
MASKCL_PAIR(MASKCL_CLONES, BFloat16, float)
MASKCL_PAIR(MASKCL_CLONES, BFloat16, BFloat16)
MASKCL_PAIR(, Half, float)  // its conversions do not vectorise
MASKCL_PAIR(, Half, Half)
MASKCL_PAIR(, double, double)  // for checks, not for speed
MASKCL_PAIR(, double, float)
MASKCL_MASK(MASKCL_CLONES, float)
MASKCL_MASK(MASKCL_CLONES, BFloat16)
MASKCL_MASK(, Half)
MASKCL_MASK(, double)

// Adds each key whose upper bits are `prefix` to the count of its next bits. Four counts take turns: equal values, which
// untrained scores are, would otherwise each wait for the one before.
MASKCL_CLONES void count_keys(const float* values, int64_t count, bool magnitude, uint32_t prefix, int shift, int bits,
                              int64_t* counts) {
  constexpr int64_t kPiece = 256;
  const uint32_t digits = (1u << bits) - 1;
  const int above = shift + bits;
  uint32_t keys[kPiece];
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t size = std::min(kPiece, count - first);
    for (int64_t i = 0; i < size; ++i) keys[i] = order_key(values[first + i], magnitude);
    for (int64_t i = 0; i < size; ++i)
      if (above == 32 || keys[i] >> above == prefix) ++counts[(i & 3) * (digits + 1) + ((keys[i] >> shift) & digits)];
  }
}

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

// A block of a weight of `width` columns.
template <typename T, typename S>
void select_block(const T* w, const S* s, T* y, const Block& block, int64_t width, const Select<compute_t<S>>& p) {
  const int64_t from = block.row * width + block.column, columns = block.columns;
  if (columns == width) return select_into(w + from, s + from, y, block.rows * columns, p);
  parallel(block.rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      run_select(w + from + r * width, s + from + r * width, y + r * columns, columns, p);
  });
}

template <typename T, typename S>
void score_grad_into(const T* g, const T* w, const S* s, S* ds, int64_t count, const Select<compute_t<S>>& p) {
  parallel(count, 1, [&](int64_t begin, int64_t end) {
    run_score_grad(g + begin, w ? w + begin : nullptr, s + begin, ds + begin, end - begin, p);
  });
}

Tensor weight_mask_cpu(const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels,
                       double threshold, bool inclusive, double scale) {
  const char* op = "weight_mask";
  const Tensor s = dense(scores), y = fresh_like(s);
  expect_large_writes(y);
  dispatch_float(s.scalar_type(), op, [&]<typename S>() {
    const auto p = select_of<compute_t<S>>(op, scores, kth, levels, threshold, inclusive, scale);
    const S* from = const_data<S>(s);
    S* to = data<S>(y);
    parallel(s.numel(), 1,
             [&](int64_t begin, int64_t end) { run_mask(from + begin, to + begin, end - begin, p); });
  });
  return like_input(y, scores);
}

Tensor masked_weight_cpu(const Tensor& weight, const Tensor& scores_in, const std::optional<Tensor>& kth,
                         const std::string& levels, double threshold, bool inclusive, double scale) {
  const char* op = "masked_weight";
  check_shape(op, "scores", scores_in, weight, "weight");
  const Tensor w = dense(weight), y = fresh_like(w);
  const Tensor s = in_order_of(scores_for(op, scores_in, w.scalar_type()), w);
  expect_large_writes(y);
  dispatch_pair(op, w.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    const auto p = select_of<compute_t<S>>(op, scores_in, kth, levels, threshold, inclusive, scale);
    select_into<T, S>(const_data<T>(w), const_data<S>(s), data<T>(y), w.numel(), p);
  });
  return like_input(y, weight);
}

std::tuple<Tensor, Tensor> masked_weight_backward_cpu(const Tensor& grad, const std::optional<Tensor>& weight,
                                                      const Tensor& scores_in, const std::optional<Tensor>& kth,
                                                      const std::string& levels, double threshold, bool inclusive,
                                                      double scale, bool want_weight, bool want_scores) {
  const char* op = "masked_weight_backward";
  check_shape(op, "scores", scores_in, grad, "grad");
  if (weight) check_shape(op, "weight", *weight, grad, "grad");
  const Tensor g = dense(grad);
  Tensor dweight = fresh(grad, {0}), dscores = fresh(scores_in, {0});
  if (want_weight) dweight = masked_weight_cpu(grad, scores_in, kth, levels, threshold, inclusive, scale);
  if (!want_scores) return {dweight, dscores};
  const Tensor s = in_order_of(scores_for(op, scores_in, g.scalar_type()), g), ds = fresh_like(s);
  expect_large_writes(ds);
  Tensor w;
  if (weight) w = in_order_of(in_dtype(*weight, g.scalar_type()), g);
  dispatch_pair(op, g.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    const auto p = select_of<compute_t<S>>(op, scores_in, kth, levels, threshold, inclusive, scale);
    score_grad_into<T, S>(const_data<T>(g), weight ? const_data<T>(w) : nullptr, const_data<S>(s), data<S>(ds),
                          g.numel(), p);
  });
  return {dweight, like_input(in_dtype(ds, scores_in.scalar_type()), scores_in)};
}

// Radix select: the digits of the k-th largest key, from the top, 11, 11 and 10 bits at a time.
float kth_of(const float* values, int64_t count, int64_t k, bool magnitude) {
  uint32_t prefix = 0;
  int shift = 32;
  for (const int bits : {11, 11, 10}) {
    shift -= bits;
    std::vector<int64_t> total(size_t{1} << bits, 0);
    std::mutex adding;
    parallel(count, 1, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> counts(size_t{4} << bits, 0);
      count_keys(values + begin, end - begin, magnitude, prefix, shift, bits, counts.data());
      const std::lock_guard<std::mutex> lock(adding);
      for (size_t i = 0; i < counts.size(); ++i) total[i & (total.size() - 1)] += counts[i];
    });
    int64_t digit = static_cast<int64_t>(total.size()) - 1;
    while (k > total[digit]) k -= total[digit--];
    prefix = prefix << bits | static_cast<uint32_t>(digit);
  }
  return value_of_key(prefix, magnitude);
}

Tensor kth_largest_cpu(const Tensor& values, int64_t k, bool magnitude) {
  const ScalarType dtype = compute_dtype(values.scalar_type());
  const Tensor flat = to_dtype(values, dtype), out = fresh(values, {}, dtype);
  MASKCL_CHECK(k >= 1 && k <= flat.numel(), "kth_largest: k is ", k, ", wanted 1 to ", flat.numel());
  if (dtype == ScalarType::Float) {
    *data<float>(out) = kth_of(const_data<float>(flat), flat.numel(), k, magnitude);
    return out;
  }
  std::vector<double> copy(const_data<double>(flat), const_data<double>(flat) + flat.numel());
  if (magnitude)
    for (double& x : copy) x = abs_(x);
  const auto larger = [](double a, double b) { return (a != a && b == b) || a > b; };
  std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), larger);
  *data<double>(out) = copy[k - 1];
  return out;
}

// --- linear ---------------------------------------------------------------------------------------------------------

Tensor piggyback_linear_cpu(const Tensor& x_in, const Tensor& weight, const Tensor& scores_in,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& kth,
                            const std::string& levels, double threshold, bool inclusive, double scale) {
  const char* op = "piggyback_linear";
  check_product(op, x_in, weight, bias);
  check_shape(op, "scores", scores_in, weight, "weight");
  const Tensor x = as_contiguous(x_in), w = as_contiguous(weight);
  const Tensor s = as_contiguous(scores_for(op, scores_in, w.scalar_type()));
  Tensor y;
  dispatch_pair(op, w.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    const auto p = select_of<compute_t<S>>(op, scores_in, kth, levels, threshold, inclusive, scale);
    y = linear_by_rows(x, w, bias, [&](const Block& block, const Tensor& out) {
      select_block<T, S>(const_data<T>(w), const_data<S>(s), data<T>(out), block, w.size(1), p);
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> piggyback_linear_backward_cpu(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& weight, const Tensor& scores_in,
    const std::optional<Tensor>& kth, const std::string& levels, double threshold, bool inclusive, double scale,
    bool want_x, bool want_weight, bool want_scores) {
  const char* op = "piggyback_linear_backward";
  check_product_grad(op, grad_in, x_in, weight);
  check_shape(op, "scores", scores_in, weight, "weight");
  const Tensor grad = to_dtype(grad_in, x_in.scalar_type()), x = as_contiguous(x_in);
  const Tensor w = as_contiguous(weight);
  const Tensor s = as_contiguous(scores_for(op, scores_in, w.scalar_type()));
  const int64_t outs = w.size(0), ins = w.size(1);
  const auto made = [](bool wanted, const Tensor& like, int64_t rows, int64_t columns) {
    return wanted ? fresh(like, {rows, columns}) : fresh(like, {0});
  };
  const Tensor dx = made(want_x, x, x.size(0), ins), dweight = made(want_weight, w, outs, ins);
  Tensor dscores = made(want_scores, s, outs, ins);
  expect_large_writes(dweight);
  expect_large_writes(dscores);
  dispatch_pair(op, w.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    const auto p = select_of<compute_t<S>>(op, scores_in, kth, levels, threshold, inclusive, scale);
    const T* from = const_data<T>(w);
    const S* score = const_data<S>(s);
    const auto fill = [&](const Block& block, const Tensor& out) {
      select_block<T, S>(from, score, data<T>(out), block, ins, p);
    };
    // The product is written where it is used last, into the scores' gradient, if it is of its dtype.
    const auto use = [&](const Block& block, const Tensor& product) {
      const int64_t offset = block.row * ins, size = block.rows * ins;
      if (want_weight) select_into<T, S>(const_data<T>(product), score + offset, data<T>(dweight) + offset, size, p);
      if (want_scores)
        score_grad_into<T, S>(const_data<T>(product), from + offset, score + offset, data<S>(dscores) + offset, size,
                              p);
    };
    linear_backward_by_rows(grad, x, w, want_x ? &dx : nullptr, want_weight || want_scores,
                              want_scores && std::is_same_v<T, S> ? &dscores : nullptr, fill, use);
  });
  return {dx, dweight, in_dtype(dscores, scores_in.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("weight_mask", TORCH_BOX(&weight_mask_cpu));
  m.impl("masked_weight", TORCH_BOX(&masked_weight_cpu));
  m.impl("masked_weight_backward", TORCH_BOX(&masked_weight_backward_cpu));
  m.impl("kth_largest", TORCH_BOX(&kth_largest_cpu));
  m.impl("piggyback_linear", TORCH_BOX(&piggyback_linear_cpu));
  m.impl("piggyback_linear_backward", TORCH_BOX(&piggyback_linear_backward_cpu));
}

}  // namespace maskcl
