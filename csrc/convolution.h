// Convolutions of images by the device's own library.
#pragma once

#include "products.h"

namespace maskcl {

struct ConvolutionOptions {
  const std::vector<int64_t>&stride, &padding, &dilation;
};

inline std::vector<int64_t> output_sizes(const Tensor& x, const Tensor& weight, const ConvolutionOptions& o) {
  std::vector<int64_t> sizes{x.size(0), weight.size(0)};
  for (int d = 0; d < 2; ++d) {
    const int64_t reach = o.dilation[d] * (weight.size(2 + d) - 1) + 1;
    sizes.push_back((x.size(2 + d) + 2 * o.padding[d] - reach) / o.stride[d] + 1);
  }
  return sizes;
}

// Of a convolution of x [N, I, H, W] with weight [O, I, KH, KW] and bias [O].
inline void check_convolution(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              const ConvolutionOptions& o) {
  check_dimensions(op, "x", x, 4);
  check_dimensions(op, "weight", weight, 4);
  check_sizes(op, "weight", weight, {weight.size(0), x.size(1), weight.size(2), weight.size(3)});
  check_dtype(op, "weight", weight, x.scalar_type());
  if (bias) check_sizes(op, "bias", *bias, {weight.size(0)});
  if (bias) check_dtype(op, "bias", *bias, x.scalar_type());
  for (const auto& [name, pair, least] :
       {std::tuple{"stride", &o.stride, 1}, std::tuple{"padding", &o.padding, 0}, std::tuple{"dilation", &o.dilation, 1}})
    MASKCL_CHECK(pair->size() == 2 && (*pair)[0] >= least && (*pair)[1] >= least, op, ": ", name, " is ",
                 sizes_as_text(*pair), ", wanted two numbers, ", least, " or more");
  for (int d = 0; d < 2; ++d)
    MASKCL_CHECK(x.size(2 + d) + 2 * o.padding[d] > o.dilation[d] * (weight.size(2 + d) - 1), op, ": x has shape ",
                 sizes_as_text(sizes_of(x)), ", smaller than the window of ", sizes_as_text(sizes_of(weight)));
}

// Fresh images [N, C, H, W] in the order [N, H, W, C].
inline Tensor empty_images(const Tensor& like, const std::vector<int64_t>& sizes) {
  Tensor t = fresh(like, {sizes[0], sizes[2], sizes[3], sizes[1]});
  t = torch::stable::transpose(t, 1, 3);
  return torch::stable::transpose(t, 2, 3);
}

inline Tensor in_channels_last(const Tensor& t) {
  if (is_channels_last(t)) return t;
  Tensor out = empty_images(t, {t.size(0), t.size(1), t.size(2), t.size(3)});
  torch::stable::copy_(out, t);
  return out;
}

// In x's order: channels_last where x is, and not in the ordinary order as well.
inline Tensor in_images_order(const Tensor& t, const Tensor& x) {
  return is_channels_last(x) && !x.is_contiguous() ? in_channels_last(t) : as_contiguous(t);
}

inline Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          const ConvolutionOptions& o) {
  const int64_t none[2] = {0, 0};
  AtenTensorHandle added = bias ? bias->get() : nullptr, y = nullptr;
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(convolution)(x.get(), weight.get(), bias ? &added : nullptr, o.stride.data(), 2,
                                                     o.padding.data(), 2, o.dilation.data(), 2, 0, none, 2, 1, &y));
  return Tensor(y);
}

// (dx, dweight, dbias); those not wanted have no elements.
inline std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& dz, const Tensor& x, const Tensor& weight,
                                                               const ConvolutionOptions& o,
                                                               const std::array<bool, 3>& wanted) {
  std::array<Tensor, 3> out{fresh(x, {0}), fresh(weight, {0}),
                            fresh(weight, {0})};
  if (!wanted[0] && !wanted[1] && !wanted[2]) return {out[0], out[1], out[2]};
  const int64_t none[2] = {0, 0}, outs = weight.size(0);
  const int64_t* bias_sizes = &outs;
  const int32_t mask[3] = {wanted[0], wanted[1], wanted[2]};
  AtenTensorHandle found[3] = {};
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(convolution_backward)(
      dz.get(), x.get(), weight.get(), &bias_sizes, 1, o.stride.data(), 2, o.padding.data(), 2, o.dilation.data(), 2, 0,
      none, 2, 1, mask, 3, &found[0], &found[1], &found[2]));
  for (int i = 0; i < 3; ++i) {
    if (!found[i]) continue;
    const Tensor made(found[i]);
    if (wanted[i]) out[i] = made;
  }
  if (wanted[0]) out[0] = in_images_order(out[0], x);
  if (wanted[1]) out[1] = in_order_of(out[1], weight);
  return {out[0], out[1], out[2]};
}

}  // namespace maskcl
