// What float32 products over open units are made of: a tile of kRows x (2 vectors) sums that stay in registers.
//
// Indices of open units are followed while operands are read or packed, so that closed ones are neither copied nor
// multiplied. Each sum is one chain of fused multiply-adds over ascending indices, also across blocks: it does not depend
// on threads or block sizes, and leaving out an exact zero does not change it.
#pragma once

#include <vector>

#include "parallel.h"

namespace maskcl {

using Index = std::vector<int32_t>;

constexpr int64_t kPackedAtOnce = 16;  // terms or rows: what is read and what is written stays in the first-level cache
constexpr int kRows = 6;  // 6 x 2 sums, 2 loaded and 1 broadcast vector fill 16 registers

template <int Bytes>
struct Vector {
  typedef float type __attribute__((vector_size(Bytes)));
  static constexpr int lanes = Bytes / 4;
  static constexpr int width = 2 * lanes;  // columns of a tile
};

inline int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// A tile's left operand: rows of a matrix at given columns, as they lie in memory.
struct Gathered {
  const float* rows[kRows];
  const int32_t* index;
  MASKCL_INLINE float operator()(int r, int64_t k) const { return rows[r][index[k]]; }
};

// Or packed: kRows values for each term.
struct Packed {
  const float* values;
  MASKCL_INLINE float operator()(int r, int64_t k) const { return values[k * kRows + r]; }
};

// A tile's right operand: values side by side for each term, every `stride` elements.
struct Panel {
  const float* values;
  int64_t stride;
  MASKCL_INLINE const float* operator()(int64_t k) const { return values + k * stride; }
};

// A tile's sums.
template <int Bytes>
struct Sums {
  using V = typename Vector<Bytes>::type;
  static constexpr int lanes = Vector<Bytes>::lanes;
  V at[kRows][2];

  // One vector at a time, here and below: of memory set or copied as a whole the sums would be in memory.
  MASKCL_INLINE Sums() {
    MASKCL_UNROLL
    for (int r = 0; r < kRows; ++r) at[r][0] = at[r][1] = V{};
  }

  // at[r][j] += sum over k < depth of left(r, k) right[k][j]
  template <typename Left>
  MASKCL_INLINE void add(int64_t depth, const Left& left, const float* right) {
    add(depth, left, Panel{right, 2 * lanes});
  }
  template <typename Left, typename Right>
  MASKCL_INLINE void add(int64_t depth, const Left& left, const Right& right) {
    for (int64_t k = 0; k < depth; ++k) {
      const float* values = right(k);
      V first, second;
      memcpy(&first, values, Bytes);
      memcpy(&second, values + lanes, Bytes);
      MASKCL_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const V value = left(r, k) - V{};
        at[r][0] += value * first;
        at[r][1] += value * second;
      }
    }
  }

  // To and from rows of `stride` elements, kRows of them.
  MASKCL_INLINE void load(const float* from, int64_t stride) {
    MASKCL_UNROLL
    for (int r = 0; r < kRows; ++r) load_row(r, from + r * stride);
  }
  MASKCL_INLINE void store(float* to, int64_t stride) const {
    MASKCL_UNROLL
    for (int r = 0; r < kRows; ++r) store_row(r, to + r * stride);
  }
  MASKCL_INLINE void load_row(int r, const float* from) {
    memcpy(&at[r][0], from, Bytes);
    memcpy(&at[r][1], from + lanes, Bytes);
  }
  MASKCL_INLINE void store_row(int r, float* to) const {
    memcpy(to, &at[r][0], Bytes);
    memcpy(to + lanes, &at[r][1], Bytes);
  }
};

// A matrix [rows, columns] in memory order, and which of its columns are open.
struct Operand {
  const float* data;
  int64_t rows, columns;
  const Index* open;

  int64_t terms() const { return static_cast<int64_t>(open->size()); }
};

// Rows [first, first + count) of the open columns, `size` rows side by side for each column; missing rows are 0.
MASKCL_INLINE void pack_rows(const Operand& a, int64_t first, int64_t count, int64_t size, float* to) {
  const int64_t terms = a.terms();
  const int32_t* index = a.open->data();
  for (int64_t begin = 0; begin < terms; begin += kPackedAtOnce) {
    const int64_t end = std::min(begin + kPackedAtOnce, terms);
    for (int64_t r = 0; r < count; ++r) {
      const float* from = a.data + (first + r) * a.columns;
      for (int64_t k = begin; k < end; ++k) to[k * size + r] = from[index[k]];
    }
    for (int64_t r = count; r < size; ++r)
      for (int64_t k = begin; k < end; ++k) to[k * size + r] = 0.0f;
  }
}

// The open columns of rows [begin, end), `size` side by side for each row: [tiles][rows][size]; missing columns are 0.
MASKCL_INLINE void pack_columns(const Operand& a, int64_t size, int64_t begin, int64_t end, float* to) {
  const int64_t terms = a.terms(), tiles = tiles_of(terms, size);
  for (int64_t block = begin; block < end; block += kPackedAtOnce)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t count = std::min(size, terms - t * size);
      const int32_t* index = a.open->data() + t * size;
      for (int64_t n = block; n < std::min(block + kPackedAtOnce, end); ++n) {
        const float* from = a.data + n * a.columns;
        float* row = to + (t * a.rows + n) * size;
        for (int64_t j = 0; j < count; ++j) row[j] = from[index[j]];
        for (int64_t j = count; j < size; ++j) row[j] = 0.0f;
      }
    }
}

}  // namespace maskcl
