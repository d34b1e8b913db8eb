// Convolutions of contiguous images over open channels: planes and filters are gathered, and the device's library convolves
// what is left. Images of one plane after the other have nothing to gain by a kernel of their own.
#pragma once

#include "../convolution.h"
#include "open_columns.h"

namespace maskcl {
namespace {

constexpr double kMostPlanesOpen = 0.8;     // of a product left, else the library is as fast with all
constexpr int64_t kPixelsForFilters = 64;   // of the output, for which an element of a filter is copied in vain
constexpr int64_t kElementsAtOnce = 256;    // looked at before the next branch

// Whether an element is neither 0 nor -0.
MASKCL_CLONES bool is_open(const float* plane, int64_t count) {
  for (int64_t first = 0; first < count; first += kElementsAtOnce) {
    const int64_t end = std::min(first + kElementsAtOnce, count);
    int32_t found = 0;
    for (int64_t i = first; i < end; ++i) found |= magnitude(plane[i]);
    if (found) return true;
  }
  return false;
}

MASKCL_CLONES double sum_of(const float* plane, int64_t count) {
  double sum = 0;
  for (int64_t first = 0; first < count; first += kElementsAtOnce) {
    const int64_t end = std::min(first + kElementsAtOnce, count);
    float part = 0;
    MASKCL_SUM(part)
    for (int64_t i = first; i < end; ++i) part += plane[i];
    sum += part;
  }
  return sum;
}

inline int64_t plane_of(const Tensor& x) { return x.size(2) * x.size(3); }

// The open channels of contiguous [N, C, H, W], which are not all 0 or -0.
inline OpenColumns open_planes(const Tensor& x) {
  const int64_t channels = x.size(1), plane = plane_of(x), each = channels * plane;
  std::vector<uint8_t> found(channels, 0);
  parallel(channels, x.size(0) * plane, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t n = 0; n < x.size(0) && !found[c]; ++n) found[c] = is_open(floats(x) + n * each + c * plane, plane);
  });
  OpenColumns open{{}, channels};
  for (int64_t c = 0; c < channels; ++c)
    if (found[c]) open.index.push_back(static_cast<int32_t>(c));
  return open;
}

// Whether to copy the filters of a share of a product pays, whose output has so many pixels.
inline bool planes_worthwhile(double share, int64_t pixels) {
  return share <= kMostPlanesOpen && (1 - share) * pixels >= share * kPixelsForFilters;
}

// The pieces of `count` elements at these places, one after the other.
MASKCL_INLINE void gather(const float* from, const Index& at, int64_t count, float* to) {
  for (const int32_t place : at) to = std::copy_n(from + place * count, count, to);
}

// These channels of contiguous images; the images themselves where that is all of them.
inline Tensor taken_planes(const Tensor& x, const OpenColumns& open) {
  const int64_t terms = open.index.size(), plane = plane_of(x), each = x.size(1) * plane;
  if (terms == x.size(1)) return x;
  const Tensor to = fresh(x, {x.size(0), terms, x.size(2), x.size(3)});
  parallel(x.size(0), terms * plane, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      gather(floats(x) + n * each, open.index, plane, mutable_floats(to) + n * terms * plane);
  });
  return to;
}

// Filters `rows` of a contiguous weight [O, I, KH, KW], their channels `columns`.
inline Tensor taken_filters(const Tensor& weight, const OpenColumns& rows, const OpenColumns& columns) {
  const int64_t outs = rows.index.size(), ins = columns.index.size(), taps = plane_of(weight);
  const int64_t each = weight.size(1) * taps;
  if (outs == weight.size(0) && ins == weight.size(1)) return weight;
  const Tensor to = fresh(weight, {outs, ins, weight.size(2), weight.size(3)});
  parallel(outs, ins * taps, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = floats(weight) + rows.index[r] * each;
      float* filter = mutable_floats(to) + r * ins * taps;
      ins == weight.size(1) ? void(std::copy_n(from, each, filter)) : gather(from, columns.index, taps, filter);
    }
  });
  return to;
}

// The reverse, with zeros elsewhere.
inline void put_filters(const Tensor& found, const OpenColumns& rows, const OpenColumns& columns, const Tensor& weight) {
  const int64_t ins = columns.index.size(), taps = plane_of(weight), each = weight.size(1) * taps;
  std::vector<int64_t> places(weight.size(0), -1);
  for (size_t r = 0; r < rows.index.size(); ++r) places[rows.index[r]] = r;
  parallel(weight.size(0), each, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      float* to = mutable_floats(weight) + o * each;
      if (places[o] < 0 || ins < weight.size(1)) std::fill_n(to, each, 0.0f);
      if (places[o] < 0) continue;
      const float* from = floats(found) + places[o] * ins * taps;
      for (int64_t k = 0; k < ins; ++k) std::copy_n(from + k * taps, taps, to + columns.index[k] * taps);
    }
  });
}

// The sums of all channels of contiguous images.
inline Tensor sums_of_planes(const Tensor& x) {
  const Tensor sums = fresh(x, {x.size(1)});
  const int64_t plane = plane_of(x), each = x.size(1) * plane;
  parallel(x.size(1), x.size(0) * plane, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < x.size(0); ++n) sum += sum_of(floats(x) + n * each + c * plane, plane);
      mutable_floats(sums)[c] = static_cast<float>(sum);
    }
  });
  return sums;
}

// The bias everywhere, or zeros.
inline Tensor constant_images(const Tensor& like, const std::vector<int64_t>& sizes, const std::optional<Tensor>& bias) {
  Tensor y = fresh(like, sizes);
  if (!bias) return torch::stable::zero_(y);
  return torch::stable::copy_(y, torch::stable::view(*bias, {sizes[1], 1, 1}));
}

// y = conv(x) + bias, of contiguous x and weight.
inline Tensor convolve_planes(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              const ConvolutionOptions& options) {
  const std::vector<int64_t> sizes = output_sizes(x, weight, options);
  const OpenColumns open = open_planes(x), outs = all_columns(weight.size(0));
  expect_large_writes(fresh(x, sizes));  // the library makes it itself, of the memory that this gives back
  const FlushOnAllThreads flush;
  if (!planes_worthwhile(open.share(), sizes[0] * sizes[2] * sizes[3])) return convolution(x, weight, bias, options);
  if (open.index.empty()) return constant_images(x, sizes, bias);
  return convolution(taken_planes(x, open), taken_filters(weight, outs, open), bias, options);
}

// (dx, dweight, dbias) of contiguous dz, x and weight; those not wanted have no elements.
inline std::tuple<Tensor, Tensor, Tensor> convolve_planes_backward(const Tensor& dz, const Tensor& x, const Tensor& weight,
                                                                   const ConvolutionOptions& options,
                                                                   const std::array<bool, 3>& wanted) {
  const int64_t pixels = dz.size(0) * plane_of(dz);
  const OpenColumns rows = open_planes(dz), ins = all_columns(weight.size(1));
  const OpenColumns columns = wanted[1] ? open_planes(x) : ins;
  const bool skip_x = wanted[0] && planes_worthwhile(rows.share(), pixels);
  const bool skip_weight = wanted[1] && planes_worthwhile(rows.share() * columns.share(), pixels);
  const FlushOnAllThreads flush;
  auto [dx, dweight, dbias] =
      convolution_backward(dz, x, weight, options, {wanted[0] && !skip_x, wanted[1] && !skip_weight, false});
  const bool none = rows.index.empty();
  const Tensor grad = (skip_x || skip_weight) && !none ? taken_planes(dz, rows) : dz;
  if (skip_x && none)
    dx = torch::stable::zero_(dx = fresh_like(x));
  else if (skip_x)
    dx = std::get<0>(convolution_backward(grad, x, taken_filters(weight, rows, ins), options, {true, false, false}));
  if (skip_weight && (none || columns.index.empty())) {
    dweight = torch::stable::zero_(dweight = fresh_like(weight));
  } else if (skip_weight) {
    // Of the weight the library wants the sizes alone.
    const auto size = [](const OpenColumns& some) { return static_cast<int64_t>(some.index.size()); };
    const Tensor like = fresh(weight, {size(rows), size(columns), weight.size(2), weight.size(3)});
    const Tensor found = as_contiguous(
        std::get<1>(convolution_backward(grad, taken_planes(x, columns), like, options, {false, true, false})));
    dweight = fresh_like(weight);
    expect_large_writes(dweight);
    put_filters(found, rows, columns, dweight);
  }
  if (wanted[2]) dbias = sums_of_planes(dz);
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace maskcl
