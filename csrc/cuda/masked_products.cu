// Runs of masked linear layers on a GPU: cuBLAS's products, each with the mask in place behind it. See
// maskcl/reference/masked_products.py.
#include "../products.h"
#include "blocks.cuh"
#include "common.cuh"
#include "gates.cuh"
#include "masked_rows.cuh"

namespace maskcl::gpu {
namespace {

using Tensors = std::vector<Tensor>;

// The sums of all columns of grad [N, O], as torch has them.
Tensor sum_columns(const Tensor& grad, ScalarType dtype) {
  using torch::stable::detail::from;
  const WithoutGrad guard;
  const std::optional<std::vector<int64_t>> rows = std::vector<int64_t>{0};
  std::array<StableIValue, 4> stack{from(grad), from(rows), from(false), from(std::optional<ScalarType>(dtype))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sum", "dim_IntList", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void check_devices(const char* op, const char* name, const Tensors& tensors, const Tensor& x) {
  for (const Tensor& t : tensors)
    if (t.numel()) check_cuda(op, name, t, x);
}

Tensors masked_linears(const Tensor& x, Tensors weights, Tensors biases, Tensors masks, const std::string& activation,
                       double slope) {
  const char* op = "masked_linears";
  check_layers(op, x, weights, biases, masks);
  check_devices(op, "weight", weights, x);
  check_devices(op, "bias", biases, x);
  const DeviceGuard guard(x.get_device_index());
  Tensors ys;
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor& in = l ? ys.back() : x;
    const Tensor y = fresh(in, {in.size(0), weights[l].size(0)});
    std::optional<Tensor> bias;
    if (biases[l].numel()) bias = biases[l];
    linear_out(in, weights[l], bias, y);
    if (l < masks.size()) masked_activation_(y, masks[l], std::nullopt, activation, slope, 1);
    ys.push_back(y);
  }
  return ys;
}

// dx, then for every layer dweight, dbias and dmask; what is not wanted has no elements.
Tensors masked_linears_backward(const Tensor& grad, const Tensor& x, Tensors ys, Tensors weights, Tensors masks,
                                const std::string& activation, double slope, bool want_x,
                                std::vector<int64_t> wanted) {
  const char* op = "masked_linears_backward";
  check_layers_grad(op, grad, x, ys, weights, masks, wanted);
  check_devices(op, "weight", weights, x);
  check_devices(op, "y", ys, x);
  const DeviceGuard guard(x.get_device_index());
  const size_t layers = weights.size();
  Tensors found(1 + 3 * layers, x);
  Tensor g = in_dtype(grad, x.scalar_type());
  for (size_t l = layers; l-- > 0;) {
    const ScalarType sums = compute_dtype(x.scalar_type());
    Tensor dz = g, dmask = fresh(x, {0}, sums), dbias = dmask;
    if (l < masks.size())
      std::tie(dz, dmask, dbias) = masked_activation_backward(g, ys[l], masks[l], std::nullopt, activation, slope, 1,
                                                              true, wanted[l] & kMask, wanted[l] & kBias);
    else if (wanted[l] & kBias)
      dbias = sum_columns(g, sums);
    const Tensor& in = l ? ys[l - 1] : x;
    const bool want_weight = wanted[l] & kWeight, want_in = l ? true : want_x;
    const Tensor dweight =
        fresh(weights[l], {want_weight ? dz.size(1) : 0, want_weight ? in.size(1) : 0});
    const Tensor din = fresh(x, {want_in ? in.size(0) : 0, want_in ? in.size(1) : 0});
    linear_backward_out(dz, in, weights[l], want_in ? &din : nullptr, want_weight ? &dweight : nullptr);
    found[1 + 3 * l] = dweight, found[2 + 3 * l] = dbias, found[3 + 3 * l] = dmask;
    g = din;
  }
  found[0] = g;
  return found;
}

// The gates' mask and term, then the outputs of the layers under that mask.
Tensors gated_linears(const Tensor& x, Tensors weights, Tensors biases, const Tensor& embedding, const Tensor& scale,
                          const Tensor& share, std::vector<int64_t> sizes, double weight, double floor,
                          const std::string& activation, double slope) {
  check_sizes_of_layers("gated_linears", sizes, embedding);
  const auto [mask, term] = hat_gates(embedding, scale, share, floor, weight);
  Tensors found = masked_linears(x, std::move(weights), std::move(biases), parts_of(mask, sizes), activation, slope);
  found.insert(found.begin(), {mask, term});
  return found;
}

// dembedding and dx, then for every layer dweight and dbias.
Tensors gated_linears_backward(const Tensor& grad, const Tensor& grad_term, const Tensor& x,
                                   Tensors ys, Tensors weights, const Tensor& mask, const Tensor& embedding,
                                   const Tensor& scale, const Tensor& share, std::vector<int64_t> sizes, double weight,
                                   double max_scale, double cosh_clamp, bool recipe, const std::string& activation,
                                   double slope, bool want_x, std::vector<int64_t> wanted) {
  check_sizes_of_layers("gated_linears_backward", sizes, mask);
  const Tensors layers = masked_linears_backward(grad, x, std::move(ys), std::move(weights), parts_of(mask, sizes),
                                                     activation, slope, want_x, std::move(wanted));
  Tensors found{mask, layers[0]}, parts;
  for (size_t l = 0; 3 * l + 1 < layers.size(); ++l) {
    found.insert(found.end(), {layers[1 + 3 * l], layers[2 + 3 * l]});
    if (l < sizes.size()) parts.push_back(layers[3 + 3 * l]);
  }
  found[0] = hat_gates_backward(std::move(parts), grad_term, embedding, scale, share, std::move(sizes), weight,
                                    max_scale, cosh_clamp, recipe);
  return found;
}

}  // namespace
}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("masked_linears", TORCH_BOX(&maskcl::gpu::masked_linears));
  m.impl("masked_linears_backward", TORCH_BOX(&maskcl::gpu::masked_linears_backward));
  m.impl("gated_linears", TORCH_BOX(&maskcl::gpu::gated_linears));
  m.impl("gated_linears_backward", TORCH_BOX(&maskcl::gpu::gated_linears_backward));
}
