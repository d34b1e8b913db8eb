// Products with a masked weight that is made block by block: no whole masked weight is ever in memory, and each block
// is multiplied out of the L2 cache that it was written to. The products are cuBLAS's, through aten.
#pragma once

#include <array>

#include "../products.h"
#include "common.cuh"

namespace maskcl::gpu {

// Elements of a block: 8 MB of bfloat16, 16 MB of float32, in an L2 of 40 MB (A100) or 50 MB (H100); smaller blocks
// would leave a product too few tiles for all multiprocessors.
constexpr int64_t kBlockElements = int64_t{1} << 22;

// A rectangle of a weight of `width` columns; a whole weight is one row of all its elements.
struct Block {
  int64_t row, rows, column, columns, width;

  int64_t count() const { return rows * columns; }
  int64_t first() const { return row * width + column; }  // where it begins in the weight
  bool contiguous() const { return columns == width; }
};

inline Block whole(int64_t count) { return {0, 1, 0, count, count}; }

// Where element i of a block lies in the weight, from the block's first element on. V neighbours lie together where both
// numbers are multiples of V.
__device__ __forceinline__ int64_t place_in_weight(int64_t i, int64_t columns, int64_t width) {
  if (columns == width) return i;
  const Division row(i, columns);
  return row.quotient * width + row.remainder;
}

inline bool vectorizes(const Block& block, int64_t vector) {
  return block.contiguous() ? block.first() % vector == 0
                            : block.column % vector == 0 && block.columns % vector == 0 && block.width % vector == 0;
}

// How many of `lines` of `length` elements make a block: blocks of about the same size, in multiples of 64 where that is
// possible, which cuBLAS has its fast kernels for.
inline int64_t lines_in_block(int64_t lines, int64_t length) {
  const int64_t blocks = std::clamp<int64_t>(ceil_div(lines * length, kBlockElements), 1, std::max<int64_t>(lines, 1));
  const int64_t even = ceil_div(lines, blocks);
  return std::min(lines, even < 64 ? even : ceil_div(even, 64) * 64);
}

// Of the thread, while it lives: autograd, which the dispatcher's call goes through, has no part in these products.
struct WithoutGrad {
  const bool before = aoti_torch_grad_mode_is_enabled();
  WithoutGrad() { aoti_torch_grad_mode_set_enabled(false); }
  ~WithoutGrad() { aoti_torch_grad_mode_set_enabled(before); }
};

// `product` ("aten::mm", "aten::bmm") with the sums in out's dtype: what the C functions do not take.
inline void product_of_halves(const char* product, const Tensor& a, const Tensor& b, const Tensor& out) {
  const WithoutGrad guard;
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(product, "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the returned reference is ours to drop
}

// out = a b with the sums in out's dtype: a float32 product of half-precision factors is never rounded to theirs.
inline void wide_matmul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  a.scalar_type() == out.scalar_type() ? matmul_out(a, b, out) : product_of_halves("aten::mm", a, b, out);
}

// The same for out[n] = a[n] b[n].
inline void wide_batched_matmul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  a.scalar_type() == out.scalar_type() ? batched_matmul_out(a, b, out) : product_of_halves("aten::bmm", a, b, out);
}

// x M^T + b for M like `weight` [O, I]; fill(block, out) writes that block of M, contiguous, into `out`.
template <typename Fill>
Tensor linear_by_rows(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Fill& fill) {
  const int64_t outs = weight.size(0), ins = weight.size(1), rows = lines_in_block(outs, ins);
  Tensor y = fresh(x, {x.size(0), outs});
  if (y.numel() == 0) return y;
  const Tensor scratch = fresh(weight, {rows, ins});
  for (int64_t row = 0; row < outs; row += rows) {
    const int64_t count = std::min(rows, outs - row);
    const Tensor part = rows_of(scratch, 0, count);
    fill(Block{row, count, 0, ins, ins}, part);
    linear_out(x, part, bias ? std::optional<Tensor>(rows_of(*bias, row, count)) : std::nullopt,
               columns_of(y, row, count));
  }
  return y;
}

// g M by blocks of columns, so that each is one whole product and nothing is added up in the output's dtype.
template <typename Fill>
void matmul_by_columns(const Tensor& grad, const Tensor& weight, const Tensor& out, const Fill& fill) {
  const int64_t outs = weight.size(0), ins = weight.size(1), columns = lines_in_block(ins, outs);
  if (out.numel() == 0) return;
  const Tensor scratch = fresh(weight, {outs * columns});
  for (int64_t column = 0; column < ins; column += columns) {
    const int64_t count = std::min(columns, ins - column);
    const Tensor part = torch::stable::view(rows_of(scratch, 0, outs * count), {outs, count});
    fill(Block{0, outs, column, count, ins}, part);
    matmul_out(grad, part, columns_of(out, column, count));
  }
}

// G = g^T x by blocks of rows: use(block, G[rows]). G is `product`'s memory, or a scratch of `dtype` where there is none.
template <typename Use>
void weight_grad_by_rows(const Tensor& grad, const Tensor& x, ScalarType dtype, const std::optional<Tensor>& product,
                         const Use& use) {
  const int64_t outs = grad.size(1), ins = x.size(1), rows = lines_in_block(outs, ins);
  if (outs * ins == 0) return;
  const Tensor scratch = product ? *product : fresh(x, {rows, ins}, dtype);
  for (int64_t row = 0; row < outs; row += rows) {
    const int64_t count = std::min(rows, outs - row);
    const Tensor part = rows_of(scratch, product ? row : 0, count);
    if (x.size(0) == 0)
      fill_with_zeros(part);
    else
      wide_matmul_out(transposed(columns_of(grad, row, count)), x, part);
    use(Block{row, count, 0, ins, ins}, part);
  }
}

}  // namespace maskcl::gpu
