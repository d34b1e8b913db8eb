// Products with a weight that is made some rows at a time: see made_rows.h. Numbers below 2^-126 are kept, as by the
// library.

#include "made_rows.h"

#include <memory>

#include "few_rows.h"
#include "open_columns.h"
#include "open_gemm.h"
#include "open_kernels.h"

namespace maskcl {
namespace {

constexpr int64_t kFewestAnyway = 8;  // batch rows: of fewer the library reads a larger weight as fast
constexpr int64_t kMade = 6 << 10;    // elements of it that are made at once: 24 KB, but one tile's rows at least
constexpr int64_t kColumns = 1024;    // of them, in the forward
constexpr int64_t kStripMost = 512;   // columns, of which all batch rows' sums stay near
constexpr int64_t kAlignment = 16;    // of blocks and strips, in elements

int64_t rounded(int64_t count, int64_t size) { return tiles_of(count, size) * size; }

// Rows of the weight that are made at once, of so many columns.
int64_t rows_at_once(int64_t rows, int64_t columns) {
  return std::min(rounded(rows, kRows), std::max<int64_t>(1, kMade / columns / kRows) * kRows);
}

std::unique_ptr<float[]> scratch_of(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }

// A tile's left operand: neighbouring columns of some rows.
struct Rows {
  const float* rows[kRows];
  MASKCL_INLINE float operator()(int r, int64_t k) const { return rows[r][k]; }
};

// What one of the kernels below is of: a block of the weight, whose rows are `stride` elements apart. Back, where `stride`
// is whole tiles, so are those of x, of the sums and of `out`.
struct Job {
  const float *made, *x, *dz;
  float *out, *sums;
  int64_t batch, ins, outs, stride;
  Block block;
};

// sums [block, N] += M x^T over the block's columns; x as tiles of batch rows.
template <int Bytes>
MASKCL_INLINE void forward_block(const Job& p) {
  constexpr int64_t width = Vector<Bytes>::width;
  for (int64_t r = 0; r < p.block.rows; r += kRows) {
    Rows left;
    for (int64_t i = 0; i < kRows; ++i) left.rows[i] = p.made + std::min(r + i, p.block.rows - 1) * p.stride;
    for (int64_t n = 0; n < p.batch; n += width)
      add_stored<Bytes>(p.block.columns, left, p.x + n * p.ins + p.block.column * width, p.sums + r * kBlock + n, kBlock,
                        p.block.column == 0);
  }
}

// sums [N, strip] += dz [N, block] M
template <int Bytes>
MASKCL_INLINE void input_grad_block(const Job& p) {
  constexpr int64_t width = Vector<Bytes>::width;
  for (int64_t c = 0; c < p.stride; c += width)
    for (int64_t n = 0; n < p.batch; n += kRows) {
      Rows left;
      for (int64_t i = 0; i < kRows; ++i) left.rows[i] = p.dz + std::min(n + i, p.batch - 1) * p.outs + p.block.row;
      Sums<Bytes> tile;
      if (p.block.row) tile.load(p.sums + n * p.stride + c, p.stride);
      tile.add(p.block.rows, left, Panel{p.made + c, p.stride});
      tile.store(p.sums + n * p.stride + c, p.stride);
    }
}

// out [block, strip] = dz^T x
template <int Bytes>
MASKCL_INLINE void weight_grad_block(const Job& p) {
  constexpr int64_t width = Vector<Bytes>::width;
  for (int64_t r = 0; r < p.block.rows; r += kRows) {
    Columns left{{}, p.outs};
    for (int64_t i = 0; i < kRows; ++i) left.columns[i] = p.dz + p.block.row + std::min(r + i, p.block.rows - 1);
    for (int64_t c = 0; c < p.stride; c += width) {
      Sums<Bytes> tile;
      tile.add(p.batch, left, Panel{p.x + c, p.stride});
      tile.store(p.out + r * p.stride + c, p.stride);
    }
  }
}

struct Kernels {
  using Kernel = void (*)(const Job&);
  int64_t width;
  Kernel forward, input_grad, weight_grad;
};

#define MASKCL_KERNELS(TARGET, level, bytes)                                               \
  TARGET void forward_##level(const Job& p) { forward_block<bytes>(p); }                   \
  TARGET void input_grad_##level(const Job& p) { input_grad_block<bytes>(p); }             \
  TARGET void weight_grad_##level(const Job& p) { weight_grad_block<bytes>(p); }           \
  constexpr Kernels level{Vector<bytes>::width, &forward_##level, &input_grad_##level, &weight_grad_##level};
MASKCL_BY_WIDTH(MASKCL_KERNELS)

// Columns [begin, end) of both gradients.
void backward_strip(Job p, float* dx, int64_t begin, int64_t end, const MakeRows& make, const UseRows* use) {
  const Kernels& k = kernels();
  const int64_t columns = end - begin, rows = rows_at_once(p.outs, columns);
  const float* x = p.x + begin;
  p.stride = rounded(columns, k.width);
  const auto near = scratch_of((p.batch + rounded(p.batch, kRows) + 2 * rows) * p.stride);
  float *rest = near.get(), *made = rest + p.batch * p.stride, *product = made + rows * p.stride;
  std::fill_n(near.get(), (p.batch + rows) * p.stride, 0.0f);  // what is beside the strip too
  for (int64_t n = 0; n < p.batch; ++n) std::copy_n(x + n * p.ins, columns, rest + n * p.stride);
  p.x = rest, p.made = made, p.out = product, p.sums = product + rows * p.stride;
  for (int64_t row = 0; row < p.outs; row += rows) {
    p.block = {row, std::min(rows, p.outs - row), begin, columns};
    if (dx) {
      make(p.block, made, p.stride);
      k.input_grad(p);
    }
    if (!use) continue;
    k.weight_grad(p);
    (*use)(p.block, product, p.stride);
  }
  for (int64_t n = 0; dx && n < p.batch; ++n) std::copy_n(p.sums + n * p.stride, columns, dx + n * p.ins + begin);
}

}  // namespace

bool backward_by_made_rows(const Tensor& x, const Tensor& weight) {
  return few_rows(x.size(0), weight.numel()) && all_float({&x, &weight});
}

bool forward_by_made_rows(const Tensor& x, const Tensor& weight) {
  const bool some = x.size(0) >= kFewestAnyway && x.size(0) <= kBlock;
  return backward_by_made_rows(x, weight) || (some && weight.numel() > 0 && all_float({&x, &weight}));
}

void made_rows_linear(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& y, const MakeRows& make) {
  const Kernels& k = kernels();
  const int64_t batch = x.size(0), ins = x.size(1), outs = y.size(1);
  const int64_t most = std::min(ins, rounded(tiles_of(ins, tiles_of(ins, kColumns)), kAlignment));
  const int64_t rows = std::min(rows_at_once(outs, most), kTogether * kRows);
  const Index all = all_columns(ins).index;
  const float* added = bias ? floats(*bias) : nullptr;
  float* to = mutable_floats(y);
  const Scratch tiles = rows_packed(x, Operand{floats(x), batch, ins, &all}, k.width);
  parallel(tiles_of(outs, rows), few_rows_cost(batch, rows * ins), [&](int64_t begin, int64_t end) {
    const auto made = scratch_of(rows * most), sums = scratch_of(rows * kBlock);
    Job p{made.get(), tiles.data, nullptr, nullptr, sums.get(), batch, ins, outs, most, {}};
    for (int64_t row = begin * rows; row < std::min(end * rows, outs); row += rows) {
      const int64_t count = std::min(rows, outs - row);
      for (int64_t column = 0; column < ins; column += most) {
        p.block = {row, count, column, std::min(most, ins - column)};
        make(p.block, made.get(), most);
        k.forward(p);
      }
      for (int64_t n = 0; n < batch; ++n)
        for (int64_t o = 0; o < count; ++o)
          to[n * outs + row + o] = sums[o * kBlock + n] + (added ? added[row + o] : 0.0f);
    }
  });
}

void made_rows_backward(const Tensor& grad, const Tensor& x, const Tensor* dx, const MakeRows& make,
                        const UseRows* use) {
  const int64_t batch = x.size(0), ins = x.size(1), outs = grad.size(1);
  const Job p{nullptr, floats(x), floats(grad), nullptr, nullptr, batch, ins, outs, 0, {}};
  parallel(tiles_of(ins, kAlignment), few_rows_cost(batch, kAlignment * outs), [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kAlignment, ins);
    for (int64_t column = begin * kAlignment; column < last; column += kStripMost)
      backward_strip(p, dx ? mutable_floats(*dx) : nullptr, column, std::min(column + kStripMost, last), make, use);
  });
}

}  // namespace maskcl
