// y = act(x + b) m in one pass; its backward is in masked_activation_backward.cpp.
//
// Memory is [outer][channels][inner]. Short inner runs are folded into rows of channels * inner columns, with mask and
// bias repeated, so that every loop is long; long ones are planes with one mask value.

#include "channel_vectors.h"
#include "masked_rows.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// --- loops, one copy an instruction set -----------------------------------------------------------------------------

template <typename T, typename C>
MASKCL_INLINE void forward_row(const T* x, const C* b, const C* m, T* y, int64_t count, Activation act, C slope) {
  dispatch_activation(act, [&]<Activation A>() __attribute__((always_inline)) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      y[i] = static_cast<T>(masked_activation<A>(static_cast<C>(x[i]), b[i], m[i], slope));
  });
}

// Planes [begin, end), each of one channel and `inner` elements.
template <typename T, typename C>
MASKCL_INLINE void forward_planes(const T* x, const C* b, const C* m, T* y, int64_t begin, int64_t end,
                                  const Layout& layout, Activation act, C slope) {
  dispatch_activation(act, [&]<Activation A>() __attribute__((always_inline)) {
    int64_t c = begin % layout.channels;
    for (int64_t p = begin; p < end; ++p) {
      const C bias = b[c], mask = m[c];
      const T* from = x + p * layout.inner;
      T* to = y + p * layout.inner;
      MASKCL_VECTORIZE
      for (int64_t i = 0; i < layout.inner; ++i)
        to[i] = static_cast<T>(masked_activation<A>(static_cast<C>(from[i]), bias, mask, slope));
      if (++c == layout.channels) c = 0;
    }
  });
}

// Cloned functions cannot be templates, so each dtype names its own.
#define MASKCL_LOOPS(CLONES, T, C)                                                                                    \
  CLONES void run_rows(const T* x, const C* b, const C* m, T* y, int64_t rows, int64_t width, Activation act,         \
                       C slope) {                                                                                     \
    for (int64_t r = 0; r < rows; ++r) forward_row<T, C>(x + r * width, b, m, y + r * width, width, act, slope);      \
  }                                                                                                                   \
  CLONES void run_planes(const T* x, const C* b, const C* m, T* y, int64_t begin, int64_t end, const Layout& layout,  \
                         Activation act, C slope) {                                                                   \
    forward_planes<T, C>(x, b, m, y, begin, end, layout, act, slope);                                                 \
  }
MASKCL_LOOPS(MASKCL_CLONES, float, float)
MASKCL_LOOPS(MASKCL_CLONES, BFloat16, float)
MASKCL_LOOPS(, Half, float)  // its conversions do not vectorise
MASKCL_LOOPS(, double, double)  // for checks, not for speed

// --- work division --------------------------------------------------------------------------------------------------

void forward(const Tensor& x, const Tensor& y, const Tensor& mask, const std::optional<Tensor>& bias,
             const Layout& layout, Activation activation, double slope) {
  dispatch_float(x.scalar_type(), "masked_activation", [&]<typename T>() {
    using C = compute_t<T>;
    const int64_t repeat = folded(layout), width = layout.channels * repeat;
    const Columns<C> columns("masked_activation", mask, bias, layout, repeat, false);
    const T* from = const_data<T>(x);
    T* to = data<T>(y);
    const C *m = columns.mask.data(), *b = columns.bias.data();
    const C leak = static_cast<C>(slope);
    if (layout.inner == repeat) {
      parallel(layout.outer, width, [&](int64_t begin, int64_t end) {
        const FlushSubnormals flush;
        run_rows(from + begin * width, b, m, to + begin * width, end - begin, width, activation, leak);
      });
    } else {
      parallel(layout.outer * layout.channels, layout.inner, [&](int64_t begin, int64_t end) {
        const FlushSubnormals flush;
        run_planes(from, b, m, to, begin, end, layout, activation, leak);
      });
    }
  });
}

}  // namespace

void mask_rows(const Tensor& y, const Tensor& mask, Activation act, double slope) {
  forward(y, y, mask, std::nullopt, {y.size(0), y.size(1), 1}, act, slope);
}

namespace {

Tensor masked_activation_cpu(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                             const std::string& activation, double slope, int64_t channel_dim) {
  const Activation act = parse_activation(activation);
  const int64_t channel = checked_channel("masked_activation", x, channel_dim);
  const Tensor out = fresh_like(x);
  expect_large_writes(out);
  if (const auto layout = layout_of(x, channel); layout && same_strides(x, out)) {
    forward(x, out, mask, bias, *layout, act, slope);
    return out;
  }
  const Tensor dense = torch::stable::contiguous(x);
  forward(dense, dense, mask, bias, *layout_of(dense, channel), act, slope);
  Tensor result = out;
  torch::stable::copy_(result, dense);
  return result;
}

void masked_activation_inplace_cpu(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                                   const std::string& activation, double slope, int64_t channel_dim) {
  const Activation act = parse_activation(activation);
  const int64_t channel = checked_channel("masked_activation_", x, channel_dim);
  if (const auto layout = layout_of(x, channel)) return forward(x, x, mask, bias, *layout, act, slope);
  const Tensor dense = torch::stable::contiguous(x);
  forward(dense, dense, mask, bias, *layout_of(dense, channel), act, slope);
  Tensor result = x;
  torch::stable::copy_(result, dense);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("masked_activation", TORCH_BOX(&masked_activation_cpu));
  m.impl("masked_activation_", TORCH_BOX(&masked_activation_inplace_cpu));
}

}  // namespace maskcl
