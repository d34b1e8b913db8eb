// Linear layers with a weight that is made block by block: no whole masked weight is ever in memory, and each block is
// multiplied while it is still in the cache that it was written to.
#pragma once

#include "../products.h"

namespace maskcl {

// Rows of a block, a multiple of 32: a small block stays near the core; with many rows of x, which each block's product
// reads and packs again, a few large ones are faster.
inline int64_t rows_in_block(const Tensor& x, const Tensor& weight) {
  const int64_t bytes = x.size(0) < 128 ? 4 << 20 : 16 << 20;
  const int64_t row = std::max<int64_t>(1, weight.size(1) * weight.element_size());
  return std::min<int64_t>(weight.size(0), std::max<int64_t>(32, bytes / row / 32 * 32));
}

// x M^T + b for M [O, I]; fill(first, count, block) writes rows [first, first + count) of M into block.
template <typename Fill>
Tensor linear_by_rows(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Fill& fill) {
  const int64_t outs = weight.size(0);
  Tensor y = torch::stable::new_empty(x, {x.size(0), outs});
  if (bias) torch::stable::copy_(y, *bias);
  if (y.numel() == 0) return y;
  if (x.size(1) == 0) return bias ? y : torch::stable::zero_(y);
  const int64_t rows = rows_in_block(x, weight);
  const Tensor scratch = torch::stable::new_empty(weight, {rows, weight.size(1)});
  for (int64_t first = 0; first < outs; first += rows) {
    const int64_t count = std::min(rows, outs - first);
    const Tensor block = rows_of(scratch, 0, count), out = columns_of(y, first, count);
    fill(first, count, block);
    bias ? matmul_add(x, transposed(block), out) : matmul_out(x, transposed(block), out);
  }
  return y;
}

// For each block of rows: dx += g[:, rows] M[rows], where dx is wanted, and G[rows] = g[:, rows]^T x handed to
// use(first, count, G), where it is wanted: written into `product`'s rows, or into a scratch where that is null.
template <typename Fill, typename Use>
void linear_backward_by_rows(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor* dx,
                               bool want_product, const Tensor* product, const Fill& fill, const Use& use) {
  const int64_t outs = weight.size(0), rows = rows_in_block(x, weight);
  if (dx && outs == 0) fill_with_zeros(*dx);
  if (outs == 0 || weight.size(1) == 0) return;
  const bool own = want_product && !product;
  const Tensor scratch = torch::stable::new_empty(weight, {dx || own ? rows : 0, weight.size(1)});
  for (int64_t first = 0; first < outs; first += rows) {
    const int64_t count = std::min(rows, outs - first);
    const Tensor g = columns_of(grad, first, count);
    if (dx) {
      const Tensor block = rows_of(scratch, 0, count);
      fill(first, count, block);
      first == 0 ? matmul_out(g, block, *dx) : matmul_add(g, block, *dx);
    }
    if (!want_product) continue;
    const Tensor full = product ? rows_of(*product, first, count) : rows_of(scratch, 0, count);
    matmul_out(transposed(g), x, full);
    use(first, count, full);
  }
}

}  // namespace maskcl
