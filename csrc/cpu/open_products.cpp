// Products that leave out closed units: see maskcl/reference/open_products.py for what that is. What is not worth
// skipping goes to the device's library as it is. A linear layer's are in open_linear.cpp.

#include "../convolution.h"
#include "open_columns.h"
#include "open_filters.h"
#include "open_kernels.h"
#include "open_linear.h"
#include "open_planes.h"

namespace maskcl {
namespace {

constexpr int64_t kFewestChannels = 16;  // that come out of a convolution: tiles are as wide
constexpr int64_t kLargestImage = int64_t{1} << 24;  // elements: kTerms images have int32 indices

struct Kernels {
  int64_t width;
  void (*convolve)(const Convolution&, int64_t, int64_t);
  void (*filter_grad)(const FilterGrad&, int64_t, int64_t);
};

#define MASKCL_KERNELS(TARGET, level, bytes)                                       \
  MASKCL_KERNEL(TARGET, convolve_##level, convolve_blocks<bytes>, Convolution)     \
  MASKCL_KERNEL(TARGET, filter_grad_##level, filter_grad_items<bytes>, FilterGrad) \
  constexpr Kernels level{Vector<bytes>::width, &convolve_##level, &filter_grad_##level};
MASKCL_BY_WIDTH(MASKCL_KERNELS)

// --- linear ---------------------------------------------------------------------------------------------------------

Tensor open_linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool ordinary) {
  check_product("open_linear", x, weight, bias);
  const Tensor y = fresh(x, {x.size(0), weight.size(0)});
  ordinary ? linear_out(x, weight, bias, y) : open_linear_into(x, weight, bias, y, nullptr, nullptr);
  return y;
}

std::tuple<Tensor, Tensor> open_linear_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                    bool want_x, bool want_weight) {
  check_product_grad("open_linear_backward", grad, x, weight);
  const int64_t batch = x.size(0), ins = weight.size(1), outs = weight.size(0);
  const Tensor dx = fresh(x, {want_x ? batch : 0, want_x ? ins : 0});
  const Tensor dweight = fresh(weight, {want_weight ? outs : 0, want_weight ? ins : 0});
  open_linear_backward_into(grad, x, weight, want_x ? &dx : nullptr, want_weight ? &dweight : nullptr, nullptr,
                            nullptr);
  return {dx, dweight};
}

// --- convolution ----------------------------------------------------------------------------------------------------

Images images(const Tensor& t) { return {floats(t), t.size(0), t.size(2), t.size(3), t.size(1)}; }

Window window_of(const Tensor& weight, const ConvolutionOptions& options) {
  Window w{weight.size(2), weight.size(3), {}, {}, {}};
  for (int d = 0; d < 2; ++d)
    w.stride[d] = options.stride[d], w.padding[d] = options.padding[d], w.dilation[d] = options.dilation[d];
  return w;
}

// The weight by tiles of the channels that come out: [tiles][taps][open][width]. transposed: O goes in, I comes out.
std::vector<float> filters_packed(const Tensor& weight, const Index& open, bool transposed, int64_t width) {
  const int64_t out_dim = transposed ? 1 : 0, outs = weight.size(out_dim), terms = open.size();
  const int64_t out_stride = weight.stride(out_dim), in_stride = weight.stride(1 - out_dim);
  const int64_t taps = weight.size(2) * weight.size(3);
  std::vector<float> to(tiles_of(outs, width) * taps * terms * width, 0.0f);
  parallel(outs, taps * terms, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const float* from = floats(weight) + o * out_stride + tap / weight.size(3) * weight.stride(2) +
                            tap % weight.size(3) * weight.stride(3);
        float* row = &to[((o / width * taps + tap) * terms) * width + o % width];
        for (int64_t k = 0; k < terms; ++k) row[k * width] = from[open[k] * in_stride];
      }
  });
  return to;
}

void convolve(const Tensor& from, const Tensor& to, const Tensor& weight, const std::optional<Tensor>& bias,
              const ConvolutionOptions& options, const Index& open, bool transposed) {
  const Kernels& k = kernels();
  const std::vector<float> packed = filters_packed(weight, open, transposed, k.width), zeros(from.size(1), 0.0f);
  const Convolution job{images(from),  images(to),    window_of(weight, options),
                        transposed,    &open,         packed.data(),
                        bias ? floats(*bias) : nullptr, zeros.data(), mutable_floats(to)};
  run(k.convolve, job, tiles_of(job.out.pixels(), kPixels),
      kPixels * job.window.taps() * static_cast<int64_t>(open.size()));
}

// x with its padding around it, zeros; both in channels_last order.
Tensor padded(const Tensor& x, const ConvolutionOptions& options) {
  const int64_t down = options.padding[0], right = options.padding[1];
  if (down == 0 && right == 0) return x;
  const int64_t height = x.size(2), high = height + 2 * down, channels = x.size(1);
  const int64_t inside = x.size(3) * channels, beside = right * channels, row = inside + 2 * beside;
  const Tensor out = empty_images(x, {x.size(0), channels, high, x.size(3) + 2 * right});
  const float* from = floats(x);
  float* to = mutable_floats(out);
  parallel(x.size(0) * high, row, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* start = to + r * row;
      const int64_t image = r / high, y = r % high - down;
      if (y < 0 || y >= height) {
        std::fill_n(start, row, 0.0f);
        continue;
      }
      std::fill_n(start, beside, 0.0f);
      std::copy_n(from + (image * height + y) * inside, inside, start + beside);
      std::fill_n(start + beside + inside, beside, 0.0f);
    }
  });
  return out;
}

void filter_grad(const Tensor& x_in, const Tensor& dz, const Tensor& dweight, const ConvolutionOptions& options,
                 const Index& columns, const Index& rows) {
  const Kernels& k = kernels();
  const Tensor x = padded(x_in, options);
  const Operand dz_rows{floats(dz), dz.numel() / dz.size(1), dz.size(1), &rows};
  const Scratch packed = columns_packed(dz, dz_rows, k.width);
  const Window window = window_of(dweight, options);
  const Index shifts = shifts_of(images(x), window, columns);
  FilterGrad job{images(x), images(dz), window, &shifts, nullptr, packed.data, tiles_of(dz_rows.terms(), k.width),
                 nullptr};
  const Index places = places_of(job);
  job.places = &places;
  const int64_t groups = job.groups(), terms = columns.size(), pairs = window.taps() * terms;
  std::vector<float> sums(job.tiles * groups * kRows * k.width);
  job.result = sums.data();
  run(k.filter_grad, job, job.tiles * groups, job.dz.pixels() * k.width);
  fill_with_zeros(dweight);
  std::vector<int64_t> places_in_filter(pairs);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t tap = pair / terms, down = tap / window.width, right = tap % window.width;
    places_in_filter[pair] =
        columns[pair % terms] * dweight.stride(1) + down * dweight.stride(2) + right * dweight.stride(3);
  }
  float* to = mutable_floats(dweight);
  parallel(dz_rows.terms(), pairs, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = &sums[r / k.width * groups * kRows * k.width + r % k.width];
      float* filter = to + rows[r] * dweight.stride(0);
      for (int64_t pair = 0; pair < pairs; ++pair) filter[places_in_filter[pair]] = from[pair * k.width];
    }
  });
}

bool may_skip(const Tensor& x, const Tensor& weight) {
  return is_channels_last(x) && !x.is_contiguous() && x.numel() > 0 && weight.numel() > 0 &&
         weight.size(0) >= kFewestChannels && x.numel() / x.size(0) <= kLargestImage;
}

// Whether images lie plane by plane, and a channel that is left out is worth looking for.
bool by_planes(const Tensor& x, const Tensor& weight) {
  const int64_t most = std::max(weight.size(0), weight.size(1));
  return x.is_contiguous() && x.numel() > 0 && weight.numel() > 0 && most >= kFewestChannels;
}

OpenColumns open_channels(const Tensor& x) { return open_columns(floats(x), x.numel() / x.size(1), x.size(1)); }

Tensor open_conv_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const ConvolutionOptions options{stride, padding, dilation};
  check_convolution("open_conv", x, weight, bias, options);
  if (may_skip(x, weight) && all_float({&x, &weight, bias ? &*bias : nullptr}))
    if (const OpenColumns open = open_channels(x); worthwhile(open.share()) || near_underflow(open.least)) {
      const Tensor y = empty_images(x, output_sizes(x, weight, options));
      std::optional<Tensor> b;
      if (bias) b = as_contiguous(*bias);
      expect_large_writes(y);
      if (y.numel() > 0) convolve(x, y, weight, b, options, open.index, false);
      return y;
    }
  if (by_planes(x, weight) && all_float({&x, &weight, bias ? &*bias : nullptr}))
    return convolve_planes(x, as_contiguous(weight), bias, options);
  return in_images_order(convolution(x, weight, bias, options), x);
}

std::tuple<Tensor, Tensor, Tensor> open_conv_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                          std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                          std::vector<int64_t> dilation, bool want_x,
                                                          bool want_weight, bool want_bias) {
  const ConvolutionOptions options{stride, padding, dilation};
  check_convolution("open_conv_backward", x, weight, std::nullopt, options);
  check_sizes("open_conv_backward", "grad", grad, output_sizes(x, weight, options));
  const Tensor dz = in_images_order(grad, x);
  const bool can = dz.numel() > 0 && all_float({&grad, &x, &weight});
  if (can && by_planes(x, weight)) {
    auto [dx, dweight, dbias] =
        convolve_planes_backward(dz, x, as_contiguous(weight), options, {want_x, want_weight, want_bias});
    return {dx, want_weight ? in_order_of(dweight, weight) : dweight, dbias};
  }
  if (!can || !may_skip(x, weight))
    return convolution_backward(dz, x, weight, options, {want_x, want_weight, want_bias});
  const OpenColumns rows = open_channels(dz), columns = want_weight ? open_channels(x) : OpenColumns{};
  const bool skip_x = want_x && (worthwhile(rows.share()) || near_underflow(rows.least));
  const bool skip_weight =
      want_weight && (worthwhile(rows.share() * columns.share()) || near_underflow(rows.least, columns.least));
  auto [dx, dweight, dbias] =
      convolution_backward(dz, x, weight, options, {want_x && !skip_x, want_weight && !skip_weight, false});
  if (skip_x) {
    dx = empty_images(x, {x.size(0), x.size(1), x.size(2), x.size(3)});
    expect_large_writes(dx);
    convolve(dz, dx, weight, std::nullopt, options, rows.index, true);
  }
  if (skip_weight) {
    dweight = fresh_like(weight);
    filter_grad(x, dz, dweight, options, columns.index, rows.index);
  }
  if (want_bias) dbias = sums_of(dz, floats(dz), dz.numel() / dz.size(1), dz.size(1));
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("open_linear", TORCH_BOX(&open_linear_cpu));
  m.impl("open_linear_backward", TORCH_BOX(&open_linear_backward_cpu));
  m.impl("open_conv", TORCH_BOX(&open_conv_cpu));
  m.impl("open_conv_backward", TORCH_BOX(&open_conv_backward_cpu));
}

}  // namespace maskcl
