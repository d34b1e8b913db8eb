// The gradients of a small linear layer for a few batch rows: operands are read where they lie. To pack them, or to let
// the library look for a kernel, takes longer than such a product.
//
// Columns of x that are closed are multiplied like others: their zeros give the zeros that are wanted.
#pragma once

#include "open_gemm.h"

namespace maskcl {

constexpr int64_t kFewestRows = 4, kMostRows = 31;  // batch rows: the library has fewer for itself, in its order of terms
constexpr int64_t kSmallWeight = int64_t{1} << 16;  // elements

inline bool few_rows(int64_t batch, int64_t weights) {
  return batch >= kFewestRows && batch <= kMostRows && weights > 0 && weights <= kSmallWeight;
}

// What a product of so many batch rows and elements of a weight costs, in elements of a plain loop.
inline int64_t few_rows_cost(int64_t batch, int64_t elements) { return std::max<int64_t>(1, batch / 8) * elements; }

// A tile's right operand: the open rows of a matrix as they lie in memory.
struct OpenRows {
  const float* data;
  int64_t stride;
  const int32_t* index;
  MASKCL_INLINE const float* operator()(int64_t k) const { return data + index[k] * stride; }
};

// A tile's left operand: columns of a matrix as they lie in memory.
struct Columns {
  const float* columns[kRows];
  int64_t stride;
  MASKCL_INLINE float operator()(int r, int64_t k) const { return columns[r][k * stride]; }
};

// Calls body(column, count) for tiles of `width` columns; where the last one would stick out it meets the one before it
// again, and where there is only one it has `count` columns alone.
template <typename F>
MASKCL_INLINE void for_columns(int64_t columns, int64_t width, const F& body) {
  for (int64_t column = 0; column < columns; column += width)
    body(columns < width ? 0 : std::min(column, columns - width), std::min(columns, width));
}

// Rows [0, count) of sums of `depth` terms, to[r] being their memory; `columns` of a tile's.
template <int Bytes, typename Left, typename Right>
MASKCL_INLINE void write_tile(int64_t depth, const Left& left, const Right& right, float* const* to, int64_t count,
                              int64_t columns) {
  if (columns == Vector<Bytes>::width) {
    Sums<Bytes> tile;
    tile.add(depth, left, right);
    // Of a number of rows that is known the sums stay in registers.
    MASKCL_UNROLL
    for (int r = 0; r < kRows; ++r)
      if (r < count) tile.store_row(r, to[r]);
    return;
  }
  for (int64_t r = 0; r < count; ++r) {
    std::fill_n(to[r], columns, 0.0f);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t c = 0; c < columns; ++c) to[r][c] += left(static_cast<int>(r), k) * right(k)[c];
  }
}

// dx [N, I] = dz [N, open O] weight [open O, I]: tiles [begin, end) of columns.
template <int Bytes>
MASKCL_INLINE void few_input_grad(const Product& p, int64_t begin, int64_t end) {
  constexpr int64_t width = Vector<Bytes>::width;
  const int32_t* open = p.dz.open->data();
  const int64_t first = begin * width, last = std::min(end * width, p.ins);
  for_columns(last - first, width, [&](int64_t at, int64_t columns) {
    const OpenRows right{p.weight + first + at, p.ins, open};
    for (int64_t n = 0; n < p.dz.rows; n += kRows) {
      const int64_t count = std::min<int64_t>(kRows, p.dz.rows - n);
      Gathered left{{}, open};
      float* to[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t row = std::min(n + r, p.dz.rows - 1);
        left.rows[r] = p.dz.data + row * p.outs, to[r] = p.out + row * p.ins + first + at;
      }
      write_tile<Bytes>(p.dz.terms(), left, right, to, count, columns);
    }
  });
}

// dW [open O, I] = dz [N, open O]^T x [N, I]: tiles [begin, end) of open rows.
template <int Bytes>
MASKCL_INLINE void few_weight_grad(const Product& p, int64_t begin, int64_t end) {
  const int32_t* open = p.dz.open->data();
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * kRows, count = std::min<int64_t>(kRows, p.dz.terms() - first);
    Columns left{{}, p.outs};
    for (int64_t r = 0; r < kRows; ++r) left.columns[r] = p.dz.data + open[first + std::min(r, count - 1)];
    for_columns(p.ins, Vector<Bytes>::width, [&](int64_t column, int64_t columns) {
      float* to[kRows];
      for (int64_t r = 0; r < count; ++r) to[r] = p.out + open[first + r] * p.ins + column;
      write_tile<Bytes>(p.dz.rows, left, Panel{p.x.data + column, p.ins}, to, count, columns);
    });
  }
}

}  // namespace maskcl
