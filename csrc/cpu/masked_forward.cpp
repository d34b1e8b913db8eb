// y = act(x + b) m and its backward, one pass each.
//
// Memory is [outer][channels][inner]. Short inner runs are folded into rows of channels * inner columns, with mask and
// bias repeated, so that every loop is long; long ones are planes with one mask value. Sums over rows go through partial
// sums of fixed blocks, hence do not depend on the number of threads.

#include <algorithm>

#include "parallel.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kShortInner = 32;  // below it inner is folded into the row
constexpr int64_t kColumns = 1024;   // columns of a tile: its accumulators stay in the first-level cache
constexpr int64_t kBlocks = 64;      // most row blocks, hence partial sums a column

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

// What an element of the backward pass reads and writes.
template <typename T, typename C>
struct Backward {
  const T* grad;
  const T* saved;
  const C* mask;
  const C* bias;       // zeros where there is none
  const C* inverse_m;
  T* dz;
  bool from_output;
  Activation activation;
  C slope;
};

template <Activation A, bool FromOutput, typename T, typename C>
MASKCL_INLINE void element(T grad, T saved, C b, C m, C inverse_m, C slope, C* dz, C* da) {
  const C g = static_cast<C>(grad), s = static_cast<C>(saved);
  if constexpr (FromOutput)
    masked_activation_backward_from_output<A>(g, s, m, inverse_m, slope, dz, da);
  else
    masked_activation_backward_from_input<A>(g, s, b, m, slope, dz, da);
}

template <typename T, typename C, typename F>
MASKCL_INLINE void dispatch_backward(const Backward<T, C>& p, F&& body) {
  dispatch_activation(p.activation, [&]<Activation A>() __attribute__((always_inline)) {
    if constexpr (A != Activation::gelu && A != Activation::gelu_tanh && A != Activation::silu) {
      if (p.from_output) return body.template operator()<A, true>();
    }
    body.template operator()<A, false>();
  });
}

// Rows [row, row_end) of columns [column, column + count): dz, and the tile's sums into dm and db.
template <typename T, typename C>
MASKCL_INLINE void backward_tile(const Backward<T, C>& p, int64_t row, int64_t row_end, int64_t width, int64_t column,
                                 int64_t count, C* dm, C* db) {
  const C *m = p.mask + column, *b = p.bias + column, *inverse_m = p.inverse_m + column;
  const C slope = p.slope;
  dispatch_backward(p, [&]<Activation A, bool FromOutput>() __attribute__((always_inline)) {
    const auto add_rows = [&]<int Rows>() __attribute__((always_inline)) {
      const T *g = p.grad + row * width + column, *s = p.saved + row * width + column;
      T* dz = p.dz + row * width + column;
      MASKCL_VECTORIZE
      for (int64_t i = 0; i < count; ++i) {
        C sum_m = 0, sum_b = 0;
        for (int r = 0; r < Rows; ++r) {
          C z, a;
          element<A, FromOutput>(g[r * width + i], s[r * width + i], b[i], m[i], inverse_m[i], slope, &z, &a);
          dz[r * width + i] = static_cast<T>(z);
          sum_m += a;
          sum_b += z;
        }
        dm[i] += sum_m;
        db[i] += sum_b;
      }
      row += Rows;
    };
    // The sums are loaded and stored once for four rows where that is most of the work; loops over four rows of the
    // other activations would be too long for the compiler to vectorise.
    if constexpr (divides_once<A>)
      while (row + 4 <= row_end) add_rows.template operator()<4>();
    while (row < row_end) add_rows.template operator()<1>();
  });
}

// The same for planes [begin, end), whose sums are single numbers.
template <typename T, typename C>
MASKCL_INLINE void backward_planes(const Backward<T, C>& p, int64_t begin, int64_t end, const Layout& layout, C* dm,
                                   C* db) {
  const C slope = p.slope;
  const int64_t inner = layout.inner;
  dispatch_backward(p, [&]<Activation A, bool FromOutput>() __attribute__((always_inline)) {
    int64_t c = begin % layout.channels;
    for (int64_t plane = begin; plane < end; ++plane) {
      const C m = p.mask[c], b = p.bias[c], inverse_m = p.inverse_m[c];
      const T *g = p.grad + plane * inner, *s = p.saved + plane * inner;
      T* dz = p.dz + plane * inner;
      C sum_m = 0, sum_b = 0;
      MASKCL_SUM(sum_m, sum_b)
      for (int64_t i = 0; i < inner; ++i) {
        C z, a;
        element<A, FromOutput>(g[i], s[i], b, m, inverse_m, slope, &z, &a);
        dz[i] = static_cast<T>(z);
        sum_m += a;
        sum_b += z;
      }
      dm[plane] = sum_m;
      db[plane] = sum_b;
      if (++c == layout.channels) c = 0;
    }
  });
}

// Cloned functions cannot be templates, so each dtype names its own.
#define MASKCL_LOOPS(CLONES, T, C)                                                                                    \
  CLONES void run_rows(const T* x, const C* b, const C* m, T* y, int64_t rows, int64_t width, Activation act,  \
                              C slope) {                                                                              \
    for (int64_t r = 0; r < rows; ++r) forward_row<T, C>(x + r * width, b, m, y + r * width, width, act, slope);      \
  }                                                                                                                   \
  CLONES void run_planes(const T* x, const C* b, const C* m, T* y, int64_t begin, int64_t end, const Layout& layout,  \
                         Activation act, C slope) {                                                                   \
    forward_planes<T, C>(x, b, m, y, begin, end, layout, act, slope);                                                 \
  }                                                                                                                   \
  CLONES void run_tile(const Backward<T, C>& p, int64_t row, int64_t row_end, int64_t width, int64_t column,   \
                              int64_t count, C* dm, C* db) {                                                          \
    backward_tile<T, C>(p, row, row_end, width, column, count, dm, db);                                               \
  }                                                                                                                   \
  CLONES void run_backward_planes(const Backward<T, C>& p, int64_t begin, int64_t end, const Layout& layout, C* dm,   \
                                  C* db) {                                                                            \
    backward_planes<T, C>(p, begin, end, layout, dm, db);                                                             \
  }
MASKCL_LOOPS(MASKCL_CLONES, float, float)
MASKCL_LOOPS(MASKCL_CLONES, BFloat16, float)
MASKCL_LOOPS(, Half, float)  // its conversions do not vectorise
MASKCL_LOOPS(, double, double)  // for checks, not for speed

// --- work division --------------------------------------------------------------------------------------------------

// Mask, bias and 1 / mask a column: as given, or each repeated `repeat` times.
template <typename C>
struct Columns {
  std::vector<C> mask, bias, inverse_m;

  Columns(const char* op, const Tensor& mask_in, const std::optional<Tensor>& bias_in, const Layout& layout,
          int64_t repeat, bool inverse) {
    check_channels(op, "mask", mask_in, layout.channels);
    if (bias_in) check_channels(op, "bias", *bias_in, layout.channels);
    const ScalarType dtype = sizeof(C) == 8 ? ScalarType::Double : ScalarType::Float;
    const Tensor m = to_dtype(mask_in, dtype);
    const C* from = static_cast<const C*>(m.const_data_ptr());
    mask.resize(layout.channels * repeat);
    bias.assign(layout.channels * repeat, C(0));
    for (int64_t c = 0; c < layout.channels; ++c) std::fill_n(mask.data() + c * repeat, repeat, from[c]);
    if (bias_in) {
      const Tensor b = to_dtype(*bias_in, dtype);
      const C* added = static_cast<const C*>(b.const_data_ptr());
      for (int64_t c = 0; c < layout.channels; ++c) std::fill_n(bias.data() + c * repeat, repeat, added[c]);
    }
    if (inverse) {
      inverse_m.resize(mask.size());
      for (size_t i = 0; i < mask.size(); ++i) inverse_m[i] = inverse_mask(mask[i]);
    }
  }
};

int64_t folded(const Layout& layout) { return layout.inner > 0 && layout.inner < kShortInner ? layout.inner : 1; }

void forward(const Tensor& x, const Tensor& y, const Tensor& mask, const std::optional<Tensor>& bias,
             Activation activation, double slope, const Layout& layout) {
  dispatch_float(x.scalar_type(), "masked_activation", [&]<typename T>() {
    using C = compute_t<T>;
    const int64_t repeat = folded(layout), width = layout.channels * repeat;
    const Columns<C> columns("masked_activation", mask, bias, layout, repeat, false);
    const T* from = static_cast<const T*>(x.const_data_ptr());
    T* to = static_cast<T*>(y.mutable_data_ptr());
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

Tensor masked_activation_cpu(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                             const std::string& activation, double slope, int64_t channel_dim) {
  const Activation act = parse_activation(activation);
  const Tensor out = torch::stable::empty_like(x);
  expect_large_writes(out);
  if (const auto layout = layout_of(x, channel_dim); layout && same_strides(x, out)) {
    forward(x, out, mask, bias, act, slope, *layout);
    return out;
  }
  const Tensor dense = torch::stable::contiguous(x);
  forward(dense, dense, mask, bias, act, slope, *layout_of(dense, channel_dim));
  Tensor result = out;
  torch::stable::copy_(result, dense);
  return result;
}

void masked_activation_inplace_cpu(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                                   const std::string& activation, double slope, int64_t channel_dim) {
  const Activation act = parse_activation(activation);
  if (const auto layout = layout_of(x, channel_dim)) return forward(x, x, mask, bias, act, slope, *layout);
  const Tensor dense = torch::stable::contiguous(x);
  forward(dense, dense, mask, bias, act, slope, *layout_of(dense, channel_dim));
  Tensor result = x;
  torch::stable::copy_(result, dense);
}

// Sums of `count` columns over `blocks` partial rows, then over `repeat` neighbours, then once divided by the mask.
template <typename C>
void reduce(const std::vector<C>& partial, int64_t blocks, int64_t width, int64_t repeat, const C* divide_by, C* out) {
  std::vector<double> sums(width, 0.0);
  for (int64_t k = 0; k < blocks; ++k)
    for (int64_t i = 0; i < width; ++i) sums[i] += static_cast<double>(partial[k * width + i]);
  for (int64_t c = 0; c < width / repeat; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < repeat; ++r) sum += sums[c * repeat + r];
    const double m = divide_by ? static_cast<double>(divide_by[c * repeat]) : 1.0;
    out[c] = static_cast<C>(mask_grad(sum, m, divide_by != nullptr));
  }
}

template <typename T, typename C>
void backward(const Backward<T, C>& pass, const Layout& layout, int64_t repeat, C* dmask, C* dbias) {
  const int64_t width = layout.channels * repeat;
  const bool planes = layout.inner != repeat;
  const int64_t rows = std::max<int64_t>(64, (layout.outer + kBlocks - 1) / kBlocks);
  const int64_t blocks = planes ? layout.outer : (layout.outer + rows - 1) / rows;
  std::vector<C> dm(blocks * width, C(0)), db(blocks * width, C(0));
  if (planes) {
    parallel(layout.outer * width, layout.inner, [&](int64_t begin, int64_t end) {
      const FlushSubnormals flush;
      run_backward_planes(pass, begin, end, layout, dm.data(), db.data());
    });
  } else {
    const int64_t tiles = (width + kColumns - 1) / kColumns;
    parallel(blocks * tiles, rows * std::min(width, kColumns), [&](int64_t begin, int64_t end) {
      const FlushSubnormals flush;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t block = t / tiles, column = (t % tiles) * kColumns;
        run_tile(pass, block * rows, std::min((block + 1) * rows, layout.outer), width, column,
                 std::min(kColumns, width - column), &dm[block * width + column], &db[block * width + column]);
      }
    });
  }
  const bool once = pass.from_output && (pass.activation == Activation::identity ||
                                         pass.activation == Activation::relu ||
                                         pass.activation == Activation::leaky_relu);
  if (dmask) reduce<C>(dm, blocks, width, repeat, once ? pass.mask : nullptr, dmask);
  if (dbias) reduce<C>(db, blocks, width, repeat, nullptr, dbias);
}

std::tuple<Tensor, Tensor, Tensor> masked_activation_backward_cpu(
    const Tensor& grad, const Tensor& saved, const Tensor& mask, const std::optional<Tensor>& bias,
    const std::string& activation, double slope, int64_t channel_dim, bool from_output, bool want_mask,
    bool want_bias) {
  const Activation act = parse_activation(activation);
  const Tensor out = torch::stable::empty_like(saved);
  const bool direct = layout_of(saved, channel_dim).has_value() && same_strides(saved, out);
  const Tensor s = direct ? saved : torch::stable::contiguous(saved);
  const Tensor g = in_order_of(grad, s), dz = direct ? out : torch::stable::empty_like(s);
  expect_large_writes(dz);
  const Layout layout = *layout_of(s, channel_dim);
  const ScalarType sums = compute_dtype(saved.scalar_type());
  const Tensor dmask = empty_vector(mask, want_mask ? layout.channels : 0, sums);
  const Tensor dbias = empty_vector(mask, want_bias ? layout.channels : 0, sums);
  dispatch_float(saved.scalar_type(), "masked_activation_backward", [&]<typename T>() {
    using C = compute_t<T>;
    const int64_t repeat = folded(layout);
    const Columns<C> columns("masked_activation_backward", mask, from_output ? std::nullopt : bias, layout, repeat,
                             true);
    const Backward<T, C> pass{static_cast<const T*>(g.const_data_ptr()),
                              static_cast<const T*>(s.const_data_ptr()),
                              columns.mask.data(),
                              columns.bias.data(),
                              columns.inverse_m.data(),
                              static_cast<T*>(dz.mutable_data_ptr()),
                              from_output,
                              act,
                              static_cast<C>(slope)};
    backward<T, C>(pass, layout, repeat, want_mask ? static_cast<C*>(dmask.mutable_data_ptr()) : nullptr,
                   want_bias ? static_cast<C*>(dbias.mutable_data_ptr()) : nullptr);
  });
  if (direct) return {dz, dmask, dbias};
  Tensor result = out;
  torch::stable::copy_(result, dz);
  return {result, dmask, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("masked_activation", TORCH_BOX(&masked_activation_cpu));
  m.impl("masked_activation_", TORCH_BOX(&masked_activation_inplace_cpu));
  m.impl("masked_activation_backward", TORCH_BOX(&masked_activation_backward_cpu));
}

}  // namespace maskcl
