// Runs of linear layers that each end in an activation and a mask, in one call each way: in small networks what a call
// costs is more than what it computes. See maskcl/reference/masked_products.py.

#include "../products.h"
#include "gates.h"
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

// The sums of all columns of grad [N, O].
void sum_columns(const Tensor& grad, const Tensor& sums) {
  const int64_t rows = grad.size(0), columns = grad.size(1);
  dispatch_float(grad.scalar_type(), "masked_linears_backward", [&]<typename T>() {
    const T* g = const_data<T>(grad);
    std::vector<double> found(columns, 0.0);
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t o = 0; o < columns; ++o) found[o] += static_cast<double>(g[n * columns + o]);
    for (int64_t o = 0; o < columns; ++o) data<compute_t<T>>(sums)[o] = static_cast<compute_t<T>>(found[o]);
  });
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
    const Tensor y = fresh(in, {in.size(0), weights[l].size(0)});
    const bool masked = l < masks.size();
    OpenColumns open;
    if (masked) open = open_units(masks[l], y.size(1));
    open_linear_into(in, weights[l], bias_of(biases[l]), y, l ? &before : nullptr, masked ? &open : nullptr);
    if (masked) mask_rows(y, masks[l], act, slope);
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
  OpenColumns rows;
  Tensor g = as_contiguous(in_dtype(grad, x.scalar_type()));
  for (size_t l = layers; l-- > 0;) {
    const int64_t units = weights[l].size(0);
    const auto vector = [&](int64_t which) {
      return fresh(x, {wanted[l] & which ? units : 0}, sums);
    };
    const Tensor dbias = vector(kBias), dmask = vector(kMask);
    const bool want_weight = wanted[l] & kWeight, want_in = l ? true : want_x;
    const bool masked = l < masks.size(), last = l + 1 == layers;
    // The gradient of a layer inside is this call's own: what it becomes is written over it.
    const Tensor dz = last && masked ? fresh_like(g) : g;
    if (masked)
      mask_rows_backward(g, ys[l], masks[l], act, slope, dz, wanted[l] & kMask ? &dmask : nullptr,
                         wanted[l] & kBias ? &dbias : nullptr);
    else if (wanted[l] & kBias)
      sum_columns(g, dbias);
    if (last && masked) rows = open_units(masks[l], units);
    const Tensor& in = l ? ys[l - 1] : x;
    const Tensor dweight = want_weight ? fresh(weights[l], {units, in.size(1)})
                                       : fresh(weights[l], {0, 0});
    const Tensor din = fresh(x, {want_in ? in.size(0) : 0, want_in ? in.size(1) : 0});
    OpenColumns columns;
    if (l) columns = open_units(masks[l - 1], in.size(1));
    open_linear_backward_into(dz, in, weights[l], want_in ? &din : nullptr, want_weight ? &dweight : nullptr,
                              masked ? &rows : nullptr, l ? &columns : nullptr);
    found[1 + 3 * l] = dweight, found[2 + 3 * l] = dbias, found[3 + 3 * l] = dmask;
    g = din;
    rows = std::move(columns);
  }
  found[0] = g;
  return found;
}

// The gates' mask and term, then the outputs of the layers under that mask.
Tensors gated_linears_cpu(const Tensor& x, Tensors weights, Tensors biases, const Tensor& embedding, const Tensor& scale,
                          const Tensor& share, std::vector<int64_t> sizes, double weight, double floor,
                          const std::string& activation, double slope) {
  check_sizes_of_layers("gated_linears", sizes, embedding);
  const auto [mask, term] = hat_gates_cpu(embedding, scale, share, floor, weight);
  Tensors found = masked_linears_cpu(x, std::move(weights), std::move(biases), parts_of(mask, sizes), activation, slope);
  found.insert(found.begin(), {mask, term});
  return found;
}

// dembedding and dx, then for every layer dweight and dbias.
Tensors gated_linears_backward_cpu(const Tensor& grad, const Tensor& grad_term, const Tensor& x,
                                   Tensors ys, Tensors weights, const Tensor& mask, const Tensor& embedding,
                                   const Tensor& scale, const Tensor& share, std::vector<int64_t> sizes, double weight,
                                   double max_scale, double cosh_clamp, bool recipe, const std::string& activation,
                                   double slope, bool want_x, std::vector<int64_t> wanted) {
  check_sizes_of_layers("gated_linears_backward", sizes, mask);
  const Tensors layers = masked_linears_backward_cpu(grad, x, std::move(ys), std::move(weights), parts_of(mask, sizes),
                                                     activation, slope, want_x, std::move(wanted));
  Tensors found{mask, layers[0]}, parts;
  for (size_t l = 0; 3 * l + 1 < layers.size(); ++l) {
    found.insert(found.end(), {layers[1 + 3 * l], layers[2 + 3 * l]});
    if (l < sizes.size()) parts.push_back(layers[3 + 3 * l]);
  }
  found[0] = hat_gates_backward_cpu(std::move(parts), grad_term, embedding, scale, share, std::move(sizes), weight,
                                    max_scale, cosh_clamp, recipe);
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("masked_linears", TORCH_BOX(&masked_linears_cpu));
  m.impl("masked_linears_backward", TORCH_BOX(&masked_linears_backward_cpu));
  m.impl("gated_linears", TORCH_BOX(&gated_linears_cpu));
  m.impl("gated_linears_backward", TORCH_BOX(&gated_linears_backward_cpu));
}

}  // namespace maskcl
