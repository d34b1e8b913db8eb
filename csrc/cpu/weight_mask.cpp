// Masks of single weights from scores: W m(s), its backward, and the k-th largest score.

#include "weight_mask.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <vector>

namespace maskcl {
namespace {

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

#define MASKCL_MASK(CLONES, S)                                                              \
  CLONES void run_mask(const S* s, S* y, int64_t count, const Select<compute_t<S>>& p) {    \
    mask_row<S>(s, y, count, p);                                                            \
  }
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("weight_mask", TORCH_BOX(&weight_mask_cpu));
  m.impl("masked_weight", TORCH_BOX(&masked_weight_cpu));
  m.impl("masked_weight_backward", TORCH_BOX(&masked_weight_backward_cpu));
  m.impl("kth_largest", TORCH_BOX(&kth_largest_cpu));
}

}  // namespace maskcl
