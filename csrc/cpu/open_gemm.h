// The products of a linear layer over open units, for batches of 32 to a few hundred rows.
#pragma once

#include "open_tile.h"

namespace maskcl {

constexpr int64_t kDepth = 512;   // terms between two visits of the stored sums
constexpr int64_t kBlock = 96;    // batch rows whose packed operand fits the second-level cache; of 6, 16 and 32
constexpr int64_t kTogether = 8;  // tiles of weight rows that share a packed operand
constexpr int64_t kStrip = 64;    // columns of the weight: what threads share out
constexpr int64_t kStripsTogether = 16;  // most that a thread packs at once, of
constexpr int64_t kWeightRows = 64;      // so many rows: a quarter of a megabyte, and as much of sums
constexpr int64_t kPair = 2 * kRows;  // open weight rows whose tiles share a panel of x

// sums[r][j] += sum over k of left(r, k) right[k][j], or what was there is forgotten.
template <int Bytes, typename Left>
MASKCL_INLINE void add_stored(int64_t depth, const Left& left, const float* right, float* sums, int64_t stride,
                              bool fresh) {
  Sums<Bytes> tile;
  if (!fresh) tile.load(sums, stride);
  tile.add(depth, left, right);
  tile.store(sums, stride);
}

// What one of the products below is of. weight is [O, I].
struct Product {
  Operand x, dz;  // [N, I] and [N, O]
  const float *weight, *bias;
  const float *packed_x, *packed_dz;
  float* out;
  int64_t ins, outs;
  const Index* wanted;  // columns of the output, where it is [N, O] or [N, I]; the others are not written

  int64_t columns() const { return static_cast<int64_t>(wanted->size()); }
  int64_t blocks() const { return tiles_of(x.rows, kBlock); }
};

// --- y [N, wanted O] = x [N, open I] weight [wanted O, open I]^T + bias -----------------------------------------------

// Items [begin, end): kTogether tiles of weight rows and a block of batch rows each; neighbours share the weight rows.
// packed_x has tiles of batch rows.
template <int Bytes>
MASKCL_INLINE void forward_groups(const Product& p, int64_t begin, int64_t end) {
  constexpr int64_t width = Vector<Bytes>::width, block = kBlock;
  const int64_t terms = p.x.terms(), outs = p.columns();
  const int32_t* wanted = p.wanted->data();
  float scratch[kTogether * kRows * block];  // 18 KB; what is read has been written
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / p.blocks(), row = item % p.blocks() * block, rows = std::min(block, p.x.rows - row);
    const int64_t panels = tiles_of(rows, width);
    const float* packed = p.packed_x + row * terms;
    const int64_t first = group * kTogether * kRows, count = std::min(kTogether * kRows, outs - first);
    for (int64_t k = 0; k < terms || k == 0; k += kDepth) {
      const int64_t depth = std::min(kDepth, terms - k);
      for (int64_t r = 0; r < count; r += kRows) {
        Gathered left{{}, p.x.open->data() + k};
        for (int i = 0; i < kRows; ++i) left.rows[i] = p.weight + wanted[std::min(first + r + i, outs - 1)] * p.ins;
        for (int64_t j = 0; j < panels; ++j)
          add_stored<Bytes>(depth, left, packed + (j * terms + k) * width, &scratch[r * block + j * width], block,
                            k == 0);
      }
    }
    for (int64_t n = 0; n < rows; ++n) {
      float* to = p.out + (row + n) * p.outs;
      for (int64_t o = 0; o < count; ++o) {
        const int32_t at = wanted[first + o];
        to[at] = scratch[o * block + n] + (p.bias ? p.bias[at] : 0.0f);
      }
    }
  }
}

// --- dx [N, wanted I] = dz [N, open O] weight [open O, wanted I] ------------------------------------------------------

// `depth` rows of the weight at the wanted columns, as panels of a tile's width one after the other: whole rows are read,
// since strips of them would each be on a page of their own.
template <int Bytes>
MASKCL_INLINE void pack_weight(const Product& p, int64_t k, int64_t depth, const int32_t* wanted, int64_t columns,
                               float* panels) {
  constexpr int64_t width = Vector<Bytes>::width;
  const bool all = p.columns() == p.ins;
  for (int64_t i = 0; i < depth; ++i) {
    const float* from = p.weight + (*p.dz.open)[k + i] * p.ins;
    for (int64_t j = 0; j < columns; j += width) {
      const int64_t count = std::min(width, columns - j);
      float* to = &panels[j * depth + i * width];
      if (all) {
        std::copy_n(from + wanted[0] + j, count, to);
      } else {
        const int32_t* index = wanted + j;
        MASKCL_VECTORIZE
        for (int64_t c = 0; c < count; ++c) to[c] = from[index[c]];
      }
      std::fill(to + count, to + width, 0.0f);
    }
  }
}

// Strips [begin, end) of kStrip wanted columns; packed_dz has tiles of kRows batch rows.
template <int Bytes>
MASKCL_INLINE void input_grad_strips(const Product& p, int64_t begin, int64_t end) {
  constexpr int64_t width = Vector<Bytes>::width, most = kStripsTogether * kStrip;
  const int64_t terms = p.dz.terms(), last = std::min(end * kStrip, p.columns());
  std::vector<float> panels(kWeightRows * most), scratch(kBlock * most);
  for (int64_t column = begin * kStrip; column < last; column += most) {
    const int64_t columns = std::min(most, last - column);
    const int32_t* wanted = p.wanted->data() + column;
    for (int64_t row = 0; row < p.dz.rows; row += kBlock) {
      const int64_t rows = std::min(kBlock, p.dz.rows - row);
      for (int64_t k = 0; k < terms || k == 0; k += kWeightRows) {
        const int64_t depth = std::min(kWeightRows, terms - k);
        pack_weight<Bytes>(p, k, depth, wanted, columns, panels.data());
        for (int64_t j = 0; j < columns; j += width)
          for (int64_t r = 0; r < rows; r += kRows)
            add_stored<Bytes>(depth, Packed{p.packed_dz + (row + r) * terms + k * kRows}, &panels[j * depth],
                              &scratch[r * most + j], most, k == 0);
      }
      for (int64_t n = 0; n < rows; ++n) {
        float* to = p.out + (row + n) * p.ins;
        if (p.columns() == p.ins)
          std::copy_n(&scratch[n * most], columns, to + column);
        else
          for (int64_t c = 0; c < columns; ++c) to[wanted[c]] = scratch[n * most + c];
      }
    }
  }
}

// --- dW [O, I] = dz [N, open O]^T x [N, open I], 0 elsewhere --------------------------------------------------------

// Pairs [begin, end) of tiles of open weight rows; both operands are packed in tiles of open columns.
template <int Bytes>
MASKCL_INLINE void weight_grad_pairs(const Product& p, int64_t begin, int64_t end) {
  constexpr int64_t width = Vector<Bytes>::width;
  const int64_t batch = p.dz.rows, terms = p.x.terms();
  const int32_t *rows = p.dz.open->data(), *index = p.x.open->data();
  const bool all = terms == p.ins;
  float sums[kRows * width];
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * kPair, count = std::min(kPair, p.dz.terms() - first);
    if (!all)
      for (int64_t r = 0; r < count; ++r) std::fill_n(p.out + rows[first + r] * p.ins, p.ins, 0.0f);
    for (int64_t column = 0; column < terms; column += width) {
      const int64_t columns = std::min(width, terms - column);
      for (int64_t r = 0; r < count; r += kRows) {
        add_stored<Bytes>(batch, Packed{p.packed_dz + (first + r) * batch}, p.packed_x + column * batch, sums, width,
                          true);
        for (int64_t i = 0; i < std::min<int64_t>(kRows, count - r); ++i) {
          float* to = p.out + rows[first + r + i] * p.ins;
          if (all)
            std::copy_n(sums + i * width, columns, to + column);
          else
            for (int64_t j = 0; j < columns; ++j) to[index[column + j]] = sums[i * width + j];
        }
      }
    }
  }
}

}  // namespace maskcl
