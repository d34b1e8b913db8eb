// Products that leave out closed units: see maskcl/reference/open_products.py for what that is. What is not worth
// skipping goes to the device's library as it is.

#include "../convolution.h"
#include "few_rows.h"
#include "open_columns.h"
#include "open_filters.h"
#include "open_gemm.h"
#include "open_linear.h"
#include "open_planes.h"

namespace maskcl {
namespace {

constexpr int64_t kFewest = 32;  // rows: of fewer no closed units are looked for, which takes the time of the product;
                                 // of up to kBlock the library is at half of an AMD core's peak where nothing is closed
constexpr int64_t kSmall = int64_t{1} << 16;  // elements of a weight: fewer rows meet it here faster than through the
                                              // library, whose product has to be looked up among many
constexpr int64_t kFewestHere = 4;  // rows: of fewer the gradients of such a weight are the library's
constexpr double kFewGradsWorthwhile = 0.15;  // of the products of fewer rows' gradients, which are mostly writing
constexpr int64_t kLarge = int64_t{1} << 20;  // elements of a weight's gradient, which no cache near a core holds
constexpr int64_t kFewestChannels = 16;  // that come out of a convolution: tiles are as wide
constexpr int64_t kLargestImage = int64_t{1} << 24;  // elements: kTerms images have int32 indices

// --- the kernels, by width of vectors -------------------------------------------------------------------------------

// Unlike other loops' clones they differ in the tile, not only in instructions.
struct Kernels {
  int64_t width;
  void (*forward)(const Product&, int64_t, int64_t);
  void (*input_grad)(const Product&, int64_t, int64_t);
  void (*weight_grad)(const Product&, int64_t, int64_t);
  void (*few_input_grad)(const Product&, int64_t, int64_t);
  void (*few_weight_grad)(const Product&, int64_t, int64_t);
  void (*convolve)(const Convolution&, int64_t, int64_t);
  void (*filter_grad)(const FilterGrad&, int64_t, int64_t);
};

#define MASKCL_KERNEL(TARGET, name, kernel, Job) \
  TARGET void name(const Job& job, int64_t begin, int64_t end) { kernel(job, begin, end); }
#define MASKCL_KERNELS(TARGET, level, bytes)                                             \
  MASKCL_KERNEL(TARGET, forward_##level, forward_groups<bytes>, Product)                 \
  MASKCL_KERNEL(TARGET, input_grad_##level, input_grad_strips<bytes>, Product)           \
  MASKCL_KERNEL(TARGET, weight_grad_##level, weight_grad_pairs<bytes>, Product)          \
  MASKCL_KERNEL(TARGET, few_input_grad_##level, maskcl::few_input_grad<bytes>, Product)  \
  MASKCL_KERNEL(TARGET, few_weight_grad_##level, maskcl::few_weight_grad<bytes>, Product) \
  MASKCL_KERNEL(TARGET, convolve_##level, convolve_blocks<bytes>, Convolution)           \
  MASKCL_KERNEL(TARGET, filter_grad_##level, filter_grad_items<bytes>, FilterGrad)       \
  constexpr Kernels level{Vector<bytes>::width,  &forward_##level,  &input_grad_##level, \
                          &weight_grad_##level,  &few_input_grad_##level, &few_weight_grad_##level, \
                          &convolve_##level, &filter_grad_##level};

MASKCL_KERNELS(, plain, 16)
#if defined(__x86_64__) && defined(__GNUC__)
MASKCL_KERNELS(__attribute__((target("avx2,fma"))), avx2, 32)
MASKCL_KERNELS(__attribute__((target("avx512f"))), avx512, 64)
const Kernels& kernels() {
  static const Kernels& found = __builtin_cpu_supports("avx512f")                                 ? avx512
                                : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2
                                                                                                  : plain;
  return found;
}
#else
const Kernels& kernels() { return plain; }
#endif

// One of the kernels over [0, count), each of `cost` elements.
template <typename Job>
void run(void (*kernel)(const Job&, int64_t, int64_t), const Job& job, int64_t count, int64_t cost) {
  parallel(count, cost, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    kernel(job, begin, end);
  });
}

bool all_float(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor* t) { return !t || t->scalar_type() == ScalarType::Float; });
}

// --- linear ---------------------------------------------------------------------------------------------------------

void forward(Product p, const Tensor& y) {
  const Kernels& k = kernels();
  const Scratch packed = rows_packed(y, p.x, k.width);
  p.packed_x = packed.data;
  run(k.forward, p, tiles_of(p.columns(), kTogether * kRows) * p.blocks(), kTogether * kRows * p.x.terms());
}

void input_grad(Product p, const Tensor& dx) {
  if (p.columns() < p.ins) std::fill_n(mutable_floats(dx), dx.numel(), 0.0f);
  const Scratch packed = rows_packed(dx, p.dz, kRows);
  p.packed_dz = packed.data, p.out = mutable_floats(dx);
  run(kernels().input_grad, p, tiles_of(p.columns(), kStrip), kStrip * p.dz.terms());
}

// A row of zeros; `past` the caches, which would first read what is overwritten.
void write_zeros(float* to, int64_t count, bool past) {
  int64_t done = 0;
#if defined(__SSE2__)
  constexpr int64_t kLanes = 4;
  if (past) {
    while (done < count && reinterpret_cast<uintptr_t>(to + done) % (kLanes * sizeof(float))) to[done++] = 0.0f;
    for (; done + kLanes <= count; done += kLanes) _mm_stream_ps(to + done, _mm_setzero_ps());
    _mm_sfence();
  }
#endif
  std::fill_n(to + done, count - done, 0.0f);
}

// The rows of closed units.
void write_closed_rows(const Product& p) {
  if (p.dz.terms() == p.outs) return;
  std::vector<bool> open(p.outs, false);
  for (const int32_t o : *p.dz.open) open[o] = true;
  parallel(p.outs, p.ins, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      if (!open[o]) write_zeros(p.out + o * p.ins, p.ins, p.outs * p.ins >= kLarge);
  });
}

void weight_grad(Product p, const Tensor& dweight) {
  const Kernels& k = kernels();
  const Scratch packed_x = columns_packed(dweight, p.x, k.width), packed_dz = columns_packed(dweight, p.dz, kRows);
  p.packed_x = packed_x.data, p.packed_dz = packed_dz.data, p.out = mutable_floats(dweight);
  write_closed_rows(p);
  run(k.weight_grad, p, tiles_of(p.dz.terms(), kPair), kPair * p.ins);
}

// 0 in all other columns: what closed units hold, even NaN, goes no further.
void keep_columns(const OpenColumns& open, int64_t rows, float* to) {
  if (static_cast<int64_t>(open.index.size()) == open.columns) return;
  for (int64_t n = 0; n < rows; ++n, to += open.columns) {
    int64_t column = 0;
    for (const int32_t next : open.index) {
      std::fill(to + column, to + next, 0.0f);
      column = next + 1;
    }
    std::fill(to + column, to + open.columns, 0.0f);
  }
}

// Both of a few rows; `columns` of x: where dx is wanted, if it is not all of it.
void few_grads(Product p, const Tensor* dx, const Tensor* dweight, const OpenColumns* columns) {
  const Kernels& k = kernels();
  if (dx) {
    p.out = mutable_floats(*dx);
    run(k.few_input_grad, p, tiles_of(p.ins, k.width), k.width * p.dz.terms());
    if (columns) keep_columns(*columns, p.x.rows, p.out);
  }
  if (!dweight) return;
  p.out = mutable_floats(*dweight);
  write_closed_rows(p);
  run(k.few_weight_grad, p, tiles_of(p.dz.terms(), kRows), kRows * p.ins);
}

}  // namespace

void open_linear_into(const Tensor& x_in, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& y,
                      const OpenColumns* known, const OpenColumns* wanted) {
  const int64_t batch = x_in.size(0);
  const bool can = weight.numel() > 0 && batch > 0 && all_float({&x_in, &weight, bias ? &*bias : nullptr});
  const bool few = batch < kFewest;
  const double left = (known ? known->share() : 1.0) * (wanted ? wanted->share() : 1.0);
  const bool small = weight.numel() <= kSmall && (known || wanted);
  if (!can || (few && !worthwhile(left) && !small))
    return linear_out(x_in, weight, bias, y);
  const Tensor x = as_contiguous(x_in);
  const OpenColumns open = known ? *known : few ? all_columns(x.size(1)) : open_columns(floats(x), batch, x.size(1));
  const OpenColumns outs = wanted ? *wanted : all_columns(weight.size(0));
  if (!worthwhile(open.share() * outs.share()) && batch > kBlock && !near_underflow(open.least))
    return linear_out(x_in, weight, bias, y);
  const Tensor w = as_contiguous(weight);
  const Tensor b = bias ? as_contiguous(*bias) : w;
  Product p{};
  p.x = {floats(x), batch, x.size(1), &open.index}, p.weight = floats(w), p.bias = bias ? floats(b) : nullptr;
  p.ins = w.size(1), p.outs = w.size(0), p.out = mutable_floats(y), p.wanted = &outs.index;
  if (p.columns() < p.outs) std::fill_n(p.out, y.numel(), 0.0f);
  forward(p, y);
}

void open_linear_backward_into(const Tensor& grad, const Tensor& x_in, const Tensor& weight, const Tensor* dx,
                               const Tensor* dweight, const OpenColumns* known_rows, const OpenColumns* known_columns) {
  const int64_t batch = x_in.size(0), ins = weight.size(1), outs = weight.size(0);
  const bool can = weight.numel() > 0 && batch > 0 && all_float({&grad, &x_in, &weight});
  const bool few = batch < kFewest;
  const FlushSubnormals flush;  // the library's small products are this thread's own
  const double left = (known_rows ? known_rows->share() : 1.0) * (known_columns ? known_columns->share() : 1.0);
  const bool small = few && batch >= kFewestHere && weight.numel() <= kSmall && worthwhile(left);
  if (!can || (few && left > kFewGradsWorthwhile && !small))
    return linear_backward_out(grad, x_in, weight, dx, dweight);
  const Tensor dz = as_contiguous(grad), w = as_contiguous(weight);
  const Tensor x = as_contiguous(x_in);
  if (small) {
    const OpenColumns rows = known_rows ? *known_rows : all_columns(outs);
    Product p{};
    p.dz = {floats(dz), batch, outs, &rows.index}, p.x = {floats(x), batch, ins, nullptr}, p.weight = floats(w);
    p.ins = ins, p.outs = outs;
    return few_grads(p, dx, dweight, known_columns);
  }
  const auto found = [&](const OpenColumns* known, const Tensor& t) {
    return known ? *known : few ? all_columns(t.size(1)) : open_columns(floats(t), batch, t.size(1));
  };
  const OpenColumns rows = found(known_rows, dz);
  const OpenColumns columns = dweight || known_columns ? found(known_columns, x) : OpenColumns{};
  const OpenColumns wanted = known_columns ? *known_columns : all_columns(ins);
  Product p{};
  p.dz = {floats(dz), batch, outs, &rows.index}, p.x = {floats(x), batch, ins, &columns.index}, p.weight = floats(w);
  p.ins = ins, p.outs = outs, p.wanted = &wanted.index;
  if (dx)
    worthwhile(rows.share() * wanted.share()) || near_underflow(rows.least) ? input_grad(p, *dx) : matmul_out(dz, w, *dx);
  if (!dweight) return;
  expect_large_writes(*dweight);
  if (worthwhile(rows.share() * columns.share()) || near_underflow(rows.least, columns.least))
    weight_grad(p, *dweight);
  else
    matmul_out(transposed(dz), x, *dweight);
}

namespace {

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
