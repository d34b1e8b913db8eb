// Runs of linear layers that each end in an activation and a mask, in one call each way: in small networks what a call
// costs is more than what it computes. See maskcl/reference/masked_products.py.

#include "../products.h"
#include "masked_rows.h"
#include "open_linear.h"

namespace maskcl {
namespace {

using Tensors = std::vector<Tensor>;

// A layer's units whose mask is not exactly 0: of all others neither outputs nor their gradients are computed.
OpenColumns open_units(const Tensor& mask_in, int64_t units) {
  const Tensor mask = to_dtype(mask_in, ScalarType::Float);
  const float* m = const_data<float>(mask);
  OpenColumns open{{}, units};
  open.index.reserve(units);
  for (int64_t c = 0; c < units; ++c)
    if (m[c] != 0.0f) open.index.push_back(static_cast<int32_t>(c));
  return open;
}

std::optional<Tensor> bias_of(const Tensor& bias) {
  if (bias.numel() == 0) return std::nullopt;
  return bias;
}

Tensors masked_linears_cpu(const Tensor& x, Tensors weights, Tensors biases, Tensors masks,
                           const std::string& activation, double slope) {
  const char* op = "masked_linears";
  const Activation act = parse_activation(activation);
  check_layers(op, x, weights, biases, masks);
  Tensors ys;
  OpenColumns before;
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor& in = l ? ys.back() : x;
    const Tensor y = torch::stable::new_empty(in, {in.size(0), weights[l].size(0)});
    OpenColumns open = open_units(masks[l], y.size(1));
    open_linear_into(in, weights[l], bias_of(biases[l]), y, l ? &before : nullptr, &open);
    mask_rows(y, masks[l], act, slope);
    before = std::move(open);
    ys.push_back(y);
  }
  return ys;
}

// dx, then for every layer dweight, dbias and dmask; what is not wanted has no elements.
Tensors masked_linears_backward_cpu(const Tensor& grad, const Tensor& x, Tensors ys, Tensors weights, Tensors masks,
                                    const std::string& activation, double slope, bool want_x,
                                    std::vector<int64_t> wanted) {
  const char* op = "masked_linears_backward";
  const Activation act = parse_activation(activation);
  check_from_output(op, act, true);
  check_layers_grad(op, grad, x, ys, weights, masks, wanted);
  const ScalarType sums = compute_dtype(x.scalar_type());
  const size_t layers = weights.size();
  Tensors found(1 + 3 * layers, x);
  OpenColumns rows = open_units(masks.back(), weights.back().size(0));
  Tensor g = as_contiguous(in_dtype(grad, x.scalar_type()));
  for (size_t l = layers; l-- > 0;) {
    const int64_t units = weights[l].size(0);
    const auto vector = [&](int64_t which) {
      return torch::stable::new_empty(x, {wanted[l] & which ? units : 0}, sums);
    };
    const Tensor dbias = vector(kBias), dmask = vector(kMask);
    const bool want_weight = wanted[l] & kWeight, want_in = l ? true : want_x;
    // The gradient of a layer inside is this call's own: what it becomes is written over it.
    const Tensor dz = l + 1 == layers ? torch::stable::empty_like(g) : g;
    mask_rows_backward(g, ys[l], masks[l], act, slope, dz, wanted[l] & kMask ? &dmask : nullptr,
                       wanted[l] & kBias ? &dbias : nullptr);
    const Tensor& in = l ? ys[l - 1] : x;
    const Tensor dweight = want_weight ? torch::stable::new_empty(weights[l], {units, in.size(1)})
                                       : torch::stable::new_empty(weights[l], {0, 0});
    const Tensor din = torch::stable::new_empty(x, {want_in ? in.size(0) : 0, want_in ? in.size(1) : 0});
    OpenColumns columns;
    if (l) columns = open_units(masks[l - 1], in.size(1));
    open_linear_backward_into(dz, in, weights[l], want_in ? &din : nullptr, want_weight ? &dweight : nullptr, &rows,
                              l ? &columns : nullptr);
    found[1 + 3 * l] = dweight, found[2 + 3 * l] = dbias, found[3 + 3 * l] = dmask;
    g = din;
    rows = std::move(columns);
  }
  found[0] = g;
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("masked_linears", TORCH_BOX(&masked_linears_cpu));
  m.impl("masked_linears_backward", TORCH_BOX(&masked_linears_backward_cpu));
}

}  // namespace maskcl
