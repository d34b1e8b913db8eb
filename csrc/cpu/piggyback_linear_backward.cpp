// The gradients of linear layers whose weights are masked from scores, by blocks of rows.

#include "made_rows.h"
#include "weight_mask.h"

namespace maskcl {
namespace {

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
    const auto fill = [&](const Block& block, T* to, int64_t stride) {
      select_block<T, S>(from, score, to, stride, block, ins, p);
    };
    if constexpr (std::is_same_v<T, float>)
      if (backward_by_made_rows(x, w)) {
        const UseRows use = [&](const Block& block, const float* product, int64_t stride) {
          for (int64_t r = 0; r < block.rows; ++r, product += stride) {
            const int64_t at = (block.row + r) * ins + block.column, count = block.columns;
            if (want_weight) run_select(product, score + at, data<T>(dweight) + at, count, p);
            if (want_scores) run_score_grad(product, from + at, score + at, data<S>(dscores) + at, count, p);
          }
        };
        return made_rows_backward(as_contiguous(grad), x, want_x ? &dx : nullptr, fill,
                                 want_weight || want_scores ? &use : nullptr);
      }
    // The product is written where it is used last, into the scores' gradient, if it is of its dtype.
    const auto use = [&](const Block& block, const Tensor& product) {
      const int64_t offset = block.row * ins, size = block.rows * ins;
      if (want_weight) select_into<T, S>(const_data<T>(product), score + offset, data<T>(dweight) + offset, size, p);
      if (want_scores)
        score_grad_into<T, S>(const_data<T>(product), from + offset, score + offset, data<S>(dscores) + offset, size,
                              p);
    };
    linear_backward_by_rows(
        grad, x, w, want_x ? &dx : nullptr, want_weight || want_scores,
        want_scores && std::is_same_v<T, S> ? &dscores : nullptr,
        [&](const Block& block, const Tensor& out) { fill(block, data<T>(out), block.columns); }, use);
  });
  return {dx, dweight, in_dtype(dscores, scores_in.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("piggyback_linear_backward", TORCH_BOX(&piggyback_linear_backward_cpu));
}

}  // namespace maskcl
