// Matrix products by the device's own library, and the parts of matrices that blocked products are made of.
#pragma once

#if defined(__CUDACC__)
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
#include <cpuid.h>
#endif

#include <algorithm>

#include "checks.h"

namespace maskcl {

// The device's own library, by the C functions that every torch from 2.11 on has (the dispatcher's stable call has no
// scalars, hence no addmm). out [M, N] has unit stride along N.
#if defined(__CUDACC__)
#define MASKCL_PRODUCT(name) aoti_torch_cuda_##name
#else
#define MASKCL_PRODUCT(name) aoti_torch_cpu_##name
#endif

// oneDNN's bfloat16 products on CPUs with AMX (torch 2.13, 2.14) take the left operand's rows 32 elements at a time and
// multiply what lies behind their last one by 0: the next row, what is beside a slice, or whatever is behind the tensor.
// Where that is NaN the product is.
inline bool reads_past_rows() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
  static const bool amx = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0;  // AMX-BF16
  }();
  return amx;
#else
  return false;
#endif
}

// A left operand with zeros behind its rows, where they may be read.
inline Tensor with_quiet_ends(const Tensor& a) {
  constexpr int64_t kStep = 32;
  const int64_t rows = a.size(0), columns = a.size(1);
  const bool safe = a.scalar_type() != ScalarType::BFloat16 || columns % kStep == 0 || a.stride(1) != 1 || rows == 0;
  if (safe || !reads_past_rows()) return a;
  Tensor wide = torch::stable::new_zeros(a, {rows, ceil_div(columns, kStep) * kStep});
  Tensor inside = torch::stable::narrow(wide, 1, 0, columns);
  torch::stable::copy_(inside, a);
  return inside;
}

// out = a b
inline void matmul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(mm_out)(out.get(), with_quiet_ends(a).get(), b.get()));
}

// out += weight a b
inline void matmul_add(const Tensor& a, const Tensor& b, const Tensor& out, double weight = 1.0) {
  TORCH_ERROR_CODE_CHECK(
      MASKCL_PRODUCT(addmm_out)(out.get(), out.get(), with_quiet_ends(a).get(), b.get(), 1.0, weight));
}

// out[n] = a[n] b[n]
inline void batched_matmul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(MASKCL_PRODUCT(bmm_out)(out.get(), a.get(), b.get()));
}

inline Tensor transposed(const Tensor& t) {
  const int64_t sizes[2] = {t.size(1), t.size(0)}, strides[2] = {t.stride(1), t.stride(0)};
  AtenTensorHandle view;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 2, sizes, strides, 0, &view));
  return Tensor(view);
}

// out = x W^T + b, as an ordinary linear layer has it: with b in the product where `out` is contiguous
inline void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  const Tensor columns = transposed(weight);
  if (!bias) return matmul_out(x, columns, out);
  TORCH_ERROR_CODE_CHECK(
      MASKCL_PRODUCT(addmm_out)(out.get(), bias->get(), with_quiet_ends(x).get(), columns.get(), 1.0, 1.0));
}

// Of its output's gradient: dx = g W and dW = g^T x, where they are wanted.
inline void linear_backward_out(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor* dx,
                                const Tensor* dweight) {
  if (dx) matmul_out(grad, weight, *dx);
  if (dweight) matmul_out(transposed(grad), x, *dweight);
}

// A part of one dimension, by the C function: the dispatcher's narrow costs as much as a small product.
inline Tensor part_of(const Tensor& t, int64_t dim, int64_t first, int64_t count) {
  constexpr int64_t kDimensions = 8;
  if (t.dim() > kDimensions) {
    Tensor source = t;
    return torch::stable::narrow(source, dim, first, count);
  }
  int64_t sizes[kDimensions] = {}, strides[kDimensions] = {};
  for (int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d), strides[d] = t.stride(d);
  sizes[dim] = count;
  AtenTensorHandle view;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), t.dim(), sizes, strides, first * strides[dim], &view));
  return Tensor(view);
}

inline Tensor rows_of(const Tensor& t, int64_t first, int64_t count) { return part_of(t, 0, first, count); }

// A contiguous vector in parts of these sizes.
inline std::vector<Tensor> parts_of(const Tensor& vector, const std::vector<int64_t>& sizes) {
  std::vector<Tensor> parts;
  int64_t at = 0;
  for (const int64_t size : sizes) {
    const int64_t stride = 1;
    AtenTensorHandle view;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(vector.get(), 1, &size, &stride, at, &view));
    parts.push_back(Tensor(view));
    at += size;
  }
  return parts;
}

inline Tensor columns_of(const Tensor& t, int64_t first, int64_t count) { return part_of(t, 1, first, count); }

inline void fill_with_zeros(const Tensor& t) {
  Tensor target = t;
  torch::stable::zero_(target);
}

}  // namespace maskcl
