// Matrix products with a weight that is made block by block: no whole masked weight is ever in memory, and each block is
// multiplied while it is still in the cache that it was written to.
#pragma once

#if defined(__CUDACC__)
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#endif

#include <algorithm>

#include "common.h"

namespace maskcl {

// The device's own library, by the C functions that every torch from 2.11 on has (the dispatcher's stable call has no
// scalars, hence no addmm). out [M, N] has unit stride along N.
#if defined(__CUDACC__)
#define MASKCL_PRODUCT(name) aoti_torch_cuda_##name
#else
#define MASKCL_PRODUCT(name) aoti_torch_cpu_##name
#endif

// out = a b
inline void matmul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(mm_out)(out.get(), a.get(), b.get()));
}

// out += a b
inline void matmul_add(const Tensor& a, const Tensor& b, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(addmm_out)(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

inline Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  Tensor source = t;
  return torch::stable::narrow(source, 0, first, count);
}

inline Tensor columns_of(const Tensor& t, int64_t first, int64_t count) {
  Tensor source = t;
  return torch::stable::narrow(source, 1, first, count);
}

inline void fill_with_zeros(const Tensor& t) {
  Tensor target = t;
  torch::stable::zero_(target);
}

inline Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

// Rows of a block of at most `bytes`, so that it and what is multiplied with it stay in the cache; a multiple of 32.
inline int64_t rows_in_block(const Tensor& weight, int64_t bytes) {
  const int64_t row = std::max<int64_t>(1, weight.size(1) * weight.element_size());
  return std::min<int64_t>(weight.size(0), std::max<int64_t>(32, bytes / row / 32 * 32));
}

// x M^T + b for M [O, I]; fill(first, count, block) writes rows [first, first + count) of M into block.
template <typename Fill>
Tensor linear_by_blocks(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t bytes,
                        const Fill& fill) {
  const int64_t outs = weight.size(0);
  Tensor y = torch::stable::new_empty(x, {x.size(0), outs});
  if (bias) torch::stable::copy_(y, *bias);
  if (y.numel() == 0) return y;
  if (x.size(1) == 0) return bias ? y : torch::stable::zero_(y);
  const int64_t rows = rows_in_block(weight, bytes);
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
void linear_backward_by_blocks(const Tensor& grad, const Tensor& x, const Tensor& weight, int64_t bytes,
                               const Tensor* dx, bool want_product, const Tensor* product,
                               const Fill& fill, const Use& use) {
  const int64_t outs = weight.size(0), rows = rows_in_block(weight, bytes);
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
