// Importances of a linear layer's weight on a GPU: one product of absolute values or, with positions, the absolute values
// of the samples' products. Both are cuBLAS's, over scratch that is bounded however many samples there are.
#include "../lists.h"
#include "blocks.cuh"
#include "importance.cuh"

namespace maskcl::gpu {
namespace {

// |x| or x^2
template <bool Square, typename T, typename D, int V>
__global__ void __launch_bounds__(kThreads) sizes_kernel(const T* x, D* out, int64_t count) {
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    const Vector<T, W> from = load<W>(x + at);
    Vector<D, W> to;
#pragma unroll
    for (int k = 0; k < W; ++k)
      to.at[k] = static_cast<D>(importance_size<Square>(static_cast<compute_t<T>>(from.at[k])));
    store(out + at, to);
  });
}

// |x| or x^2 of contiguous x into contiguous `out`, of x's dtype or the importances'.
template <bool Square, typename T, typename D>
void write_sizes(const Tensor& x, const Tensor& out) {
  const T* from = const_data<T>(x);
  D* to = data<D>(out);
  launch_vectors<vector_width<T>>(x.numel(), true, {from, to}, [&]<int V>(unsigned blocks) {
    sizes_kernel<Square, T, D, V><<<blocks, kThreads, 0, current_stream(x)>>>(from, to, x.numel());
  });
}

void write_sizes(const char* op, const Tensor& x, const Tensor& out, bool square) {
  dispatch_float(x.scalar_type(), op, [&]<typename T>() {
    if (square)
      write_sizes<true, T, compute_t<T>>(x, out);
    else
      write_sizes<false, T, T>(x, out);
  });
}

// Where a row of contiguous x begins.
void* row_of(const Tensor& x, int64_t row) {
  return static_cast<char*>(x.mutable_data_ptr()) + row * x.size(1) * x.element_size();
}

// Samples at a time, so that their scratch of `bytes` a sample stays bounded; in multiples of 64, as cuBLAS likes them.
int64_t samples_at_a_time(int64_t samples, int64_t bytes) {
  constexpr int64_t kBytes = 64 << 20;
  const int64_t most = std::max<int64_t>(1, kBytes / bytes);
  return std::min(samples, most < 64 ? most : most / 64 * 64);
}

// omega += weight |g|^T |x|. Absolute values of halves are halves, and their product has its sums in float32; squares
// would be rounded to halves, so they are float32.
void add_outer_sizes(const char* op, const Tensor& omega, const Tensor& x, const Tensor& g, double weight,
                     bool square) {
  const int64_t samples = x.size(0), ins = x.size(1), outs = g.size(1);
  const ScalarType sums = omega.scalar_type(), dtype = square ? sums : x.scalar_type();
  const int64_t rows = samples_at_a_time(samples, (ins + outs) * (dtype == x.scalar_type() ? x : omega).element_size());
  const Tensor a = fresh(omega, {rows, outs}, dtype);
  const Tensor b = fresh(omega, {rows, ins}, dtype);
  for (int64_t first = 0; first < samples; first += rows) {
    const int64_t count = std::min(rows, samples - first);
    const Tensor sizes_g = rows_of(a, 0, count), sizes_x = rows_of(b, 0, count);
    write_sizes(op, rows_of(g, first, count), sizes_g, square);
    write_sizes(op, rows_of(x, first, count), sizes_x, square);
    if (dtype == sums) {
      matmul_add(transposed(sizes_g), sizes_x, omega, weight);
    } else {
      weight_grad_by_rows(sizes_g, sizes_x, sums, std::nullopt, [&](const Block& block, const Tensor& part) {
        add_sizes_of_samples(op, part, 1, row_of(omega, block.row), weight, false);
      });
    }
  }
}

// omega += weight sum_n |g[n]^T x[n]|: some samples' products at a time, in 32 MB, most of which an L2 keeps until they
// are made positive; a part of the rows where one product is larger than that.
void add_sample_products(const char* op, const Tensor& omega, const Tensor& x, const Tensor& g, double weight,
                         bool square) {
  constexpr int64_t kElements = int64_t{1} << 23, kMost = 1 << 15;  // cuBLAS has limits on batches
  const int64_t samples = x.size(0), outs = omega.size(0), ins = omega.size(1);
  const int64_t rows = std::clamp<int64_t>(kElements / ins, 1, outs);
  const int64_t chunk = std::min(samples, std::clamp<int64_t>(kElements / (rows * ins), 1, kMost));
  const Tensor scratch = fresh(omega, {chunk * rows * ins});
  for (int64_t row = 0; row < outs; row += rows) {
    const int64_t height = std::min(rows, outs - row);
    Tensor part = g;
    part = torch::stable::narrow(part, 2, row, height);
    part = torch::stable::transpose(part, 1, 2);
    for (int64_t first = 0; first < samples; first += chunk) {
      const int64_t count = std::min(chunk, samples - first);
      const Tensor products = torch::stable::view(rows_of(scratch, 0, count * height * ins), {count, height, ins});
      wide_batched_matmul_out(rows_of(part, first, count), rows_of(x, first, count), products);
      add_sizes_of_samples(op, products, count, row_of(omega, row), weight, square);
    }
  }
}

void check_linear(const char* op, const Tensor& importance, const Tensor& x, const Tensor& g) {
  check_cuda(op, "importance", importance, x);
  check_cuda(op, "grad_out", g, x);
  check_importance(op, importance, x, g);
}

}  // namespace

void linear_importance_(const Tensor& importance, const Tensor& x, const Tensor& grad_out, double weight,
                        bool square) {
  const char* op = "linear_importance_";
  const DeviceGuard guard(x.get_device_index());
  check_linear(op, importance, x, grad_out);
  if (importance.numel() == 0 || x.numel() == 0 || grad_out.numel() == 0) return;
  Written written;
  const Tensor omega = written.in_order(importance, torch::stable::contiguous(importance));
  if (x.dim() == 3 && x.size(1) > 1) {  // cuBLAS takes rows or columns, whichever lie side by side
    add_sample_products(op, omega, x, grad_out, weight, square);
  } else {  // a sample of one position is an outer product, whose sizes are products of sizes
    const Tensor xs = torch::stable::contiguous(x), gs = torch::stable::contiguous(grad_out);
    add_outer_sizes(op, omega, torch::stable::view(xs, {x.size(0), omega.size(1)}),
                    torch::stable::view(gs, {x.size(0), omega.size(0)}), weight, square);
  }
  written.finish();
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("linear_importance_", TORCH_BOX(&maskcl::gpu::linear_importance_));
}
