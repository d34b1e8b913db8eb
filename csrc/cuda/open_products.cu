// Products of layers between masked units: cuBLAS's and cuDNN's, all units of them. To leave closed ones out their number
// would have to be known before a kernel is launched, and the host would wait for the device at every layer.
#include "../convolution.h"
#include "common.cuh"

namespace maskcl::gpu {
namespace {

using Sizes = std::vector<int64_t>;

Tensor open_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool) {
  check_cuda("open_linear", "weight", weight, x);
  check_product("open_linear", x, weight, bias);
  const DeviceGuard guard(x.get_device_index());
  const Tensor y = fresh(x, {x.size(0), weight.size(0)});
  linear_out(x, weight, bias, y);
  return y;
}

std::tuple<Tensor, Tensor> open_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, bool want_x,
                                                bool want_weight) {
  check_cuda("open_linear_backward", "weight", weight, grad);
  check_product_grad("open_linear_backward", grad, x, weight);
  const DeviceGuard guard(grad.get_device_index());
  const Tensor dx = fresh(x, {want_x ? x.size(0) : 0, want_x ? x.size(1) : 0});
  const Tensor dweight =
      fresh(weight, {want_weight ? weight.size(0) : 0, want_weight ? weight.size(1) : 0});
  linear_backward_out(grad, x, weight, want_x ? &dx : nullptr, want_weight ? &dweight : nullptr);
  return {dx, dweight};
}

Tensor open_conv(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, Sizes stride, Sizes padding,
                 Sizes dilation) {
  const ConvolutionOptions options{stride, padding, dilation};
  check_cuda("open_conv", "weight", weight, x);
  check_convolution("open_conv", x, weight, bias, options);
  const DeviceGuard guard(x.get_device_index());
  return in_images_order(convolution(x, weight, bias, options), x);
}

std::tuple<Tensor, Tensor, Tensor> open_conv_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                      Sizes stride, Sizes padding, Sizes dilation, bool want_x,
                                                      bool want_weight, bool want_bias) {
  const ConvolutionOptions options{stride, padding, dilation};
  check_cuda("open_conv_backward", "weight", weight, grad);
  check_convolution("open_conv_backward", x, weight, std::nullopt, options);
  check_sizes("open_conv_backward", "grad", grad, output_sizes(x, weight, options));
  const DeviceGuard guard(grad.get_device_index());
  return convolution_backward(grad, x, weight, options, {want_x, want_weight, want_bias});
}

}  // namespace
}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("open_linear", TORCH_BOX(&maskcl::gpu::open_linear));
  m.impl("open_linear_backward", TORCH_BOX(&maskcl::gpu::open_linear_backward));
  m.impl("open_conv", TORCH_BOX(&maskcl::gpu::open_conv));
  m.impl("open_conv_backward", TORCH_BOX(&maskcl::gpu::open_conv_backward));
}
