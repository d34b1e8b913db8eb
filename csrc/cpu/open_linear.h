// A linear layer's products without closed units, for the ops that are made of them: see open_linear.cpp.
#pragma once

#include <numeric>

#include "open_tile.h"

namespace maskcl {

// Which columns of an operand are multiplied.
struct OpenColumns {
  Index index;
  int64_t columns = 0;  // of the operand
  float least = 1.0f;   // the smallest column's largest magnitude, of those that are not 0; 1 where it was not looked at

  double share() const { return columns ? static_cast<double>(index.size()) / columns : 1.0; }
};

inline OpenColumns all_columns(int64_t columns) {
  OpenColumns all{Index(columns), columns};
  std::iota(all.index.begin(), all.index.end(), 0);
  return all;
}

// y [N, O] = x [N, I] weight [O, I]^T + bias. `known`: of x, where the caller knows that all others are 0; else they are
// looked for. `wanted`: of y, where the others are to be 0.
void open_linear_into(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& y,
                      const OpenColumns* known, const OpenColumns* wanted);

// dx = grad weight and dweight = grad^T x, where they are wanted. `known_rows`: as above of grad; `known_columns`: of x,
// and then dx is wanted there alone, and 0 or dx elsewhere.
void open_linear_backward_into(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor* dx,
                               const Tensor* dweight, const OpenColumns* known_rows, const OpenColumns* known_columns);

}  // namespace maskcl
