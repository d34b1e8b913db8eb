// A linear layer's products without closed units. What is not worth skipping goes to the device's library as it is.

#include "../products.h"
#include "few_rows.h"
#include "open_columns.h"
#include "open_gemm.h"
#include "open_kernels.h"

namespace maskcl {
namespace {

constexpr int64_t kFewest = 32;  // rows: of fewer no closed units are looked for, which takes the time of the product;
                                 // of up to kBlock the library is at half of an AMD core's peak where nothing is closed
constexpr double kFewGradsWorthwhile = 0.15;  // of the products of fewer rows' gradients, which are mostly writing
constexpr int64_t kSmallOutput = 4096;  // elements, of which the library's way to spread a bias costs more than them
constexpr int64_t kLarge = int64_t{1} << 20;  // elements of a weight's gradient, which no cache near a core holds

struct Kernels {
  using Kernel = void (*)(const Product&, int64_t, int64_t);
  int64_t width;
  Kernel forward, input_grad, weight_grad, few_input_grad, few_weight_grad;
};

#define MASKCL_KERNELS(TARGET, level, bytes)                                              \
  MASKCL_KERNEL(TARGET, forward_##level, forward_groups<bytes>, Product)                  \
  MASKCL_KERNEL(TARGET, input_grad_##level, input_grad_strips<bytes>, Product)            \
  MASKCL_KERNEL(TARGET, weight_grad_##level, weight_grad_pairs<bytes>, Product)           \
  MASKCL_KERNEL(TARGET, few_input_grad_##level, few_input_grad<bytes>, Product)           \
  MASKCL_KERNEL(TARGET, few_weight_grad_##level, few_weight_grad<bytes>, Product)         \
  constexpr Kernels level{Vector<bytes>::width,  &forward_##level,        &input_grad_##level, \
                          &weight_grad_##level, &few_input_grad_##level, &few_weight_grad_##level};
MASKCL_BY_WIDTH(MASKCL_KERNELS)

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
    run(k.few_input_grad, p, tiles_of(p.ins, k.width), few_rows_cost(p.x.rows, k.width * p.dz.terms()));
    if (columns) keep_columns(*columns, p.x.rows, p.out);
  }
  if (!dweight) return;
  p.out = mutable_floats(*dweight);
  write_closed_rows(p);
  run(k.few_weight_grad, p, tiles_of(p.dz.terms(), kRows), few_rows_cost(p.x.rows, kRows * p.ins));
}

// linear_out, to the bit: the library's own product, onto rows that hold the bias.
void float_linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias_in, const Tensor& y) {
  if (!bias_in || y.numel() > kSmallOutput) return linear_out(x, weight, bias_in, y);
  const Tensor bias = as_contiguous(*bias_in);
  const int64_t outs = y.size(1);
  for (int64_t n = 0; n < y.size(0); ++n) std::copy_n(floats(bias), outs, mutable_floats(y) + n * outs);
  matmul_add(x, transposed(weight), y);
}

}  // namespace

void open_linear_into(const Tensor& x_in, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& y,
                      const OpenColumns* known, const OpenColumns* wanted) {
  const int64_t batch = x_in.size(0);
  const bool can = weight.numel() > 0 && batch > 0 && all_float({&x_in, &weight, bias ? &*bias : nullptr});
  const bool few = batch < kFewest;
  const double left = (known ? known->share() : 1.0) * (wanted ? wanted->share() : 1.0);
  const bool small = few_rows(batch, weight.numel()) && (known || wanted);
  if (!can) return linear_out(x_in, weight, bias, y);
  if (few && !worthwhile(left) && !small) return float_linear_out(x_in, weight, bias, y);
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
  const bool small = few_rows(batch, weight.numel());
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

}  // namespace maskcl
