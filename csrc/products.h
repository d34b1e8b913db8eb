// Matrix products by the device's own library, and the parts of matrices that blocked products are made of.
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

// out += weight a b
inline void matmul_add(const Tensor& a, const Tensor& b, const Tensor& out, double weight = 1.0) {
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(addmm_out)(out.get(), out.get(), a.get(), b.get(), 1.0, weight));
}

// out[n] = a[n] b[n]
inline void batched_matmul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(bmm_out)(out.get(), a.get(), b.get()));
}

// out = x W^T + b, as an ordinary linear layer has it: with b in the product where `out` is contiguous
inline void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  Tensor w = weight;
  const Tensor columns = torch::stable::transpose(w, 0, 1);
  if (!bias) return matmul_out(x, columns, out);
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(addmm_out)(out.get(), bias->get(), x.get(), columns.get(), 1.0, 1.0));
}

// Of its output's gradient: dx = g W and dW = g^T x, where they are wanted.
inline void linear_backward_out(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor* dx,
                                const Tensor* dweight) {
  Tensor g = grad;
  if (dx) matmul_out(grad, weight, *dx);
  if (dweight) matmul_out(torch::stable::transpose(g, 0, 1), x, *dweight);
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

}  // namespace maskcl
