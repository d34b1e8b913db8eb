// Linear layers whose weights are masked from scores, by blocks of rows.

#include "made_rows.h"
#include "weight_mask.h"

namespace maskcl {
namespace {

Tensor piggyback_linear_cpu(const Tensor& x_in, const Tensor& weight, const Tensor& scores_in,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& kth,
                            const std::string& levels, double threshold, bool inclusive, double scale) {
  const char* op = "piggyback_linear";
  check_product(op, x_in, weight, bias);
  check_shape(op, "scores", scores_in, weight, "weight");
  const Tensor x = as_contiguous(x_in), w = as_contiguous(weight);
  const Tensor s = as_contiguous(scores_for(op, scores_in, w.scalar_type()));
  const int64_t ins = w.size(1);
  Tensor y;
  dispatch_pair(op, w.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    const auto p = select_of<compute_t<S>>(op, scores_in, kth, levels, threshold, inclusive, scale);
    const auto fill = [&](const Block& block, T* to, int64_t stride) {
      select_block<T, S>(const_data<T>(w), const_data<S>(s), to, stride, block, ins, p);
    };
    if constexpr (std::is_same_v<T, float>)
      if (forward_by_made_rows(x, w)) {
        y = fresh(x, {x.size(0), w.size(0)});
        return made_rows_linear(x, bias ? as_contiguous(*bias) : bias, y, fill);
      }
    y = linear_by_rows(x, w, bias, [&](const Block& block, const Tensor& out) {
      fill(block, data<T>(out), block.columns);
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) { m.impl("piggyback_linear", TORCH_BOX(&piggyback_linear_cpu)); }

}  // namespace maskcl
