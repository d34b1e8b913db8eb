// Which columns of an operand are open, and copies of them that tiles can read.
#pragma once

#include <limits>

#include "open_linear.h"

namespace maskcl {
namespace {

constexpr double kWorthwhile = 2.0 / 3;  // of a product left, else the library is as fast
// Of operands, or of a product of two: elements around this one have products with a weight, or with each other, below
// 2^-126. The library, which keeps gradual underflow, takes a hundred cycles for each of them; the kernels here do not.
constexpr float kNearUnderflow = 0x1p-100f;
constexpr int64_t kRowsAtOnce = 1024;

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
inline float* mutable_floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// A float's magnitude in the order of integers; NaN is above infinity.
MASKCL_INLINE int32_t magnitude(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & INT32_MAX;
}

MASKCL_CLONES void column_maxima(const float* x, int64_t rows, int64_t columns, int32_t* largest) {
  for (int64_t r = 0; r < rows; ++r) {
    MASKCL_VECTORIZE
    for (int64_t c = 0; c < columns; ++c) {
      const int32_t found = magnitude(x[r * columns + c]);
      largest[c] = found > largest[c] ? found : largest[c];
    }
  }
}

MASKCL_CLONES void column_sums(const float* x, int64_t rows, int64_t columns, float* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    MASKCL_VECTORIZE
    for (int64_t c = 0; c < columns; ++c) sums[c] += x[r * columns + c];
  }
}

// What `collect` gathers of each column in blocks of rows: [blocks][columns].
template <typename T, typename F>
std::vector<T> by_blocks(const float* x, int64_t rows, int64_t columns, const F& collect) {
  const int64_t blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  std::vector<T> found(blocks * columns, T(0));
  parallel(blocks, kRowsAtOnce * columns, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kRowsAtOnce;
      collect(x + first * columns, std::min(kRowsAtOnce, rows - first), columns, &found[b * columns]);
    }
  });
  return found;
}

// Whether to leave columns out is worth it, where this share of a product is left.
inline bool worthwhile(double share) { return share <= kWorthwhile; }

// The open columns of [rows, columns], which are not all 0 or -0; all of them where too few are closed to matter.
inline OpenColumns open_columns(const float* x, int64_t rows, int64_t columns) {
  std::vector<int32_t> largest = by_blocks<int32_t>(x, rows, columns, column_maxima);
  for (size_t i = columns; i < largest.size(); ++i) largest[i % columns] = std::max(largest[i % columns], largest[i]);
  OpenColumns open{{}, columns};
  open.index.reserve(columns);
  int32_t least = magnitude(std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < std::min<int64_t>(largest.size(), columns); ++c) {
    if (largest[c] == 0) continue;
    open.index.push_back(static_cast<int32_t>(c));
    least = std::min(least, largest[c]);
  }
  memcpy(&open.least, &least, sizeof least);
  if (!worthwhile(open.share())) open.index = all_columns(columns).index;
  return open;
}

// Whether the kernels here are faster than the library's, for operands of which these columns are the smallest.
inline bool near_underflow(float least, float other = 1.0f) { return least * other < kNearUnderflow; }

// The sums of all columns, [columns]: in the order of the rows, whatever the number of threads.
inline Tensor sums_of(const Tensor& like, const float* x, int64_t rows, int64_t columns) {
  const Tensor sums = fresh(like, {columns});
  const std::vector<float> parts = by_blocks<float>(x, rows, columns, column_sums);
  std::vector<double> wide(columns, 0.0);
  for (size_t i = 0; i < parts.size(); ++i) wide[i % columns] += static_cast<double>(parts[i]);
  for (int64_t c = 0; c < columns; ++c) mutable_floats(sums)[c] = static_cast<float>(wide[c]);
  return sums;
}

// Memory for a while, of the allocator that keeps it mapped: fresh pages would cost more than filling them.
struct Scratch {
  Tensor owner;
  float* data;

  Scratch(const Tensor& like, int64_t count)
      : owner(fresh(like, {count}, ScalarType::Float)), data(mutable_floats(owner)) {
    expect_large_writes(owner);
  }
};

// All rows, `size` side by side for each open column.
inline Scratch rows_packed(const Tensor& like, const Operand& a, int64_t size) {
  Scratch to(like, tiles_of(a.rows, size) * size * a.terms());
  parallel(tiles_of(a.rows, size), size * a.terms(), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      pack_rows(a, t * size, std::min(size, a.rows - t * size), size, to.data + t * size * a.terms());
  });
  return to;
}

// All open columns, `size` side by side for each row.
inline Scratch columns_packed(const Tensor& like, const Operand& a, int64_t size) {
  Scratch to(like, tiles_of(a.terms(), size) * size * a.rows);
  parallel(a.rows, a.terms(), [&](int64_t begin, int64_t end) { pack_columns(a, size, begin, end, to.data); });
  return to;
}

}  // namespace
}  // namespace maskcl
