// Linear layers with a weight that is made block by block: no whole masked weight is ever in memory, and each block is
// multiplied while it is still in the cache that it was written to.
#pragma once

#include "../products.h"

namespace maskcl {

// A rectangle of a weight.
struct Block {
  int64_t row, rows, column, columns;
};

// Lines of a block, a multiple of 32, much the same in all blocks: for each thread so few that they, and what they are
// made of, stay in the core's second-level cache while they are multiplied, but as many as rows of x, which each block's
// product reads and packs again. Several threads meet four times a block, which costs more than the next cache does.
inline int64_t lines_in_block(const Tensor& x, int64_t lines, int64_t length, int64_t element) {
  const int64_t batch = x.size(0), line = std::max<int64_t>(1, length * element);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t near = (threads > 1 ? 1 << 20 : 256 << 10) / line, most = (batch < 128 ? 4 << 20 : 16 << 20) / line;
  const int64_t each = std::max(near, batch < 128 ? batch : 2 * batch);
  const int64_t at_most = std::max<int64_t>(32, std::min(each * threads, most) / 32 * 32);
  const int64_t blocks = std::max<int64_t>(1, (lines + at_most - 1) / at_most);
  return std::min(lines, (lines + 32 * blocks - 1) / (32 * blocks) * 32);
}

inline int64_t rows_in_block(const Tensor& x, const Tensor& weight) {
  return lines_in_block(x, weight.size(0), weight.size(1), weight.element_size());
}

// x M^T + b for M [O, I]; fill(block, out) writes that block of M, whole rows, into `out`.
template <typename Fill>
Tensor linear_by_rows(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Fill& fill) {
  const int64_t outs = weight.size(0), ins = weight.size(1);
  Tensor y = fresh(x, {x.size(0), outs});
  const int64_t rows = rows_in_block(x, weight);
  if (rows == outs && y.numel() != 0 && ins != 0) {  // one block, as an ordinary layer has it
    const Tensor whole = fresh(weight, {outs, ins});
    fill(Block{0, outs, 0, ins}, whole);
    linear_out(x, whole, bias, y);
    return y;
  }
  if (bias) torch::stable::copy_(y, *bias);
  if (y.numel() == 0) return y;
  if (ins == 0) return bias ? y : torch::stable::zero_(y);
  const Tensor scratch = fresh(weight, {rows, ins});
  for (int64_t first = 0; first < outs; first += rows) {
    const int64_t count = std::min(rows, outs - first);
    const Tensor part = rows_of(scratch, 0, count), out = columns_of(y, first, count);
    fill(Block{first, count, 0, ins}, part);
    bias ? matmul_add(x, transposed(part), out) : matmul_out(x, transposed(part), out);
  }
  return y;
}

// g M by blocks of columns: each is one whole product, so that nothing is added up in the output's dtype.
template <typename Fill>
void matmul_by_columns(const Tensor& grad, const Tensor& weight, const Tensor& out, const Fill& fill) {
  const int64_t outs = weight.size(0), ins = weight.size(1);
  const int64_t columns = lines_in_block(grad, ins, outs, weight.element_size());
  const Tensor scratch = fresh(weight, {outs * columns});
  for (int64_t first = 0; first < ins; first += columns) {
    const int64_t count = std::min(columns, ins - first);
    const Tensor part = torch::stable::view(rows_of(scratch, 0, outs * count), {outs, count});
    fill(Block{0, outs, first, count}, part);
    matmul_out(grad, part, columns_of(out, first, count));
  }
}

// dx = g M, where dx is wanted, and G = g^T x by blocks of rows handed to use(block, G[rows]), where it is wanted:
// written into `product`'s rows, or into a scratch where that is null. In float32 dx is added up over the same blocks;
// half-precision sums must not be rounded on their way.
template <typename Fill, typename Use>
void linear_backward_by_rows(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor* dx,
                             bool want_product, const Tensor* product, const Fill& fill, const Use& use) {
  const int64_t outs = weight.size(0), ins = weight.size(1), rows = rows_in_block(x, weight);
  if (dx && outs == 0) fill_with_zeros(*dx);
  if (outs == 0 || ins == 0) return;
  const bool half = weight.element_size() < 4, own = want_product && !product;
  if (dx && half) matmul_by_columns(grad, weight, *dx, fill);
  const Tensor* sums = half ? nullptr : dx;
  const Tensor scratch = fresh(weight, {sums || own ? rows : 0, ins});
  for (int64_t first = 0; (sums || want_product) && first < outs; first += rows) {
    const int64_t count = std::min(rows, outs - first);
    const Block block{first, count, 0, ins};
    const Tensor g = columns_of(grad, first, count);
    if (sums) {
      const Tensor part = rows_of(scratch, 0, count);
      fill(block, part);
      first == 0 ? matmul_out(g, part, *sums) : matmul_add(g, part, *sums);
    }
    if (!want_product) continue;
    const Tensor full = product ? rows_of(*product, first, count) : rows_of(scratch, 0, count);
    matmul_out(transposed(g), x, full);
    use(block, full);
  }
}

}  // namespace maskcl
