// Products of a batch of up to 96 rows and a weight that is made some rows at a time, and multiplied where it was made, in
// the first-level cache. The library would have blocks of it in memory first, and at this size gets half of an AMD core's
// peak; of a few rows and a small weight it takes as long to find a kernel as to run it.
#pragma once

#include <functional>

#include "row_blocks.h"

namespace maskcl {

using MakeRows = std::function<void(const Block&, float* to, int64_t stride)>;
using UseRows = std::function<void(const Block&, const float* product, int64_t stride)>;

// Whether this way is the faster one. Gradients, whose sums are short, want a few rows.
bool forward_by_made_rows(const Tensor& x, const Tensor& weight);
bool backward_by_made_rows(const Tensor& x, const Tensor& weight);

// y [N, O] = x [N, I] M^T + bias; make(block, to, stride) writes that block of M [O, I]. All are contiguous.
void made_rows_linear(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& y, const MakeRows& make);

// dx = grad M, where dx is wanted, and blocks of grad^T x handed to `use`, where there is one.
void made_rows_backward(const Tensor& grad, const Tensor& x, const Tensor* dx, const MakeRows& make, const UseRows* use);

}  // namespace maskcl
