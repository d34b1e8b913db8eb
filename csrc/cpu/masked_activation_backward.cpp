// The backward of y = act(x + b) m in one pass.
//
// Rows and planes are as in masked_forward.cpp. Sums over rows go through partial sums of fixed blocks, hence do not
// depend on the number of threads.

#include "channel_vectors.h"
#include "masked_rows.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kColumns = 1024;  // columns of a tile: its accumulators stay in the first-level cache
constexpr int64_t kBlocks = 64;     // most row blocks, hence partial sums a column

// --- loops, one copy an instruction set -----------------------------------------------------------------------------

// What an element of the backward pass reads and writes.
template <typename T, typename C>
struct Backward {
  const T* grad;
  const T* saved;
  const C* mask;
  const C* bias;  // zeros where there is none
  const C* inverse_m;
  T* dz;
  Activation activation;
  C slope;
  bool from_output;
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
    if constexpr (has_slope_from_output(A)) {
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
    if constexpr (divides_once(A))
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
  CLONES void run_tile(const Backward<T, C>& p, int64_t row, int64_t row_end, int64_t width, int64_t column,          \
                       int64_t count, C* dm, C* db) {                                                                 \
    backward_tile<T, C>(p, row, row_end, width, column, count, dm, db);                                               \
  }                                                                                                                   \
  CLONES void run_planes(const Backward<T, C>& p, int64_t begin, int64_t end, const Layout& layout, C* dm, C* db) {   \
    backward_planes<T, C>(p, begin, end, layout, dm, db);                                                             \
  }
MASKCL_LOOPS(MASKCL_CLONES, float, float)
MASKCL_LOOPS(MASKCL_CLONES, BFloat16, float)
MASKCL_LOOPS(, Half, float)  // its conversions do not vectorise
MASKCL_LOOPS(, double, double)  // for checks, not for speed

// --- work division --------------------------------------------------------------------------------------------------

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
      run_planes(pass, begin, end, layout, dm.data(), db.data());
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
  const bool once = pass.from_output && divides_once(pass.activation);
  if (dmask) reduce<C>(dm, blocks, width, repeat, once ? pass.mask : nullptr, dmask);
  if (dbias) reduce<C>(db, blocks, width, repeat, nullptr, dbias);
}

}  // namespace

void mask_rows_backward(const Tensor& grad, const Tensor& y, const Tensor& mask, Activation act, double slope,
                        const Tensor& dz, const Tensor* dmask, const Tensor* dbias) {
  const char* op = "masked_linears_backward";
  const Layout layout{y.size(0), y.size(1), 1};
  dispatch_float(y.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const Columns<C> columns(op, mask, std::nullopt, layout, 1, true);
    const Backward<T, C> pass{const_data<T>(grad),       const_data<T>(y),         columns.mask.data(),
                              columns.bias.data(),       columns.inverse_m.data(), data<T>(dz),
                              act,                       static_cast<C>(slope),    true};
    backward<T, C>(pass, layout, 1, dmask ? data<C>(*dmask) : nullptr, dbias ? data<C>(*dbias) : nullptr);
  });
}

namespace {

std::tuple<Tensor, Tensor, Tensor> masked_activation_backward_cpu(
    const Tensor& grad, const Tensor& saved, const Tensor& mask, const std::optional<Tensor>& bias,
    const std::string& activation, double slope, int64_t channel_dim, bool from_output, bool mask_grad,
    bool bias_grad) {
  const char* op = "masked_activation_backward";
  const Activation act = parse_activation(activation);
  check_shape(op, "grad", grad, saved, "saved");
  check_from_output(op, act, from_output);
  const int64_t channel = checked_channel(op, saved, channel_dim);
  const Tensor out = fresh_like(saved);
  const bool direct = layout_of(saved, channel).has_value() && same_strides(saved, out);
  const Tensor s = direct ? saved : torch::stable::contiguous(saved);
  const Tensor g = in_order_of(in_dtype(grad, s.scalar_type()), s), dz = direct ? out : fresh_like(s);
  expect_large_writes(dz);
  const Layout layout = *layout_of(s, channel);
  const ScalarType sums = compute_dtype(saved.scalar_type());
  const Tensor dmask = empty_vector(mask, mask_grad ? layout.channels : 0, sums);
  const Tensor dbias = empty_vector(mask, bias_grad ? layout.channels : 0, sums);
  dispatch_float(saved.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const int64_t repeat = folded(layout);
    const Columns<C> columns(op, mask, from_output ? std::nullopt : bias, layout, repeat, true);
    const Backward<T, C> pass{const_data<T>(g),
                              const_data<T>(s),
                              columns.mask.data(),
                              columns.bias.data(),
                              columns.inverse_m.data(),
                              data<T>(dz),
                              act,
                              static_cast<C>(slope),
                              from_output};
    backward<T, C>(pass, layout, repeat, mask_grad ? data<C>(dmask) : nullptr, bias_grad ? data<C>(dbias) : nullptr);
  });
  if (direct) return {dz, dmask, dbias};
  Tensor result = out;
  torch::stable::copy_(result, dz);
  return {result, dmask, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("masked_activation_backward", TORCH_BOX(&masked_activation_backward_cpu));
}

}  // namespace maskcl
