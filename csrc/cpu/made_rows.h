// A linear layer of a few batch rows whose small weight is made some rows at a time, and multiplied where it was made: in
// the first-level cache. The library would have all of it in memory first, and take as long to find a kernel as to run it.
#pragma once

#include <functional>

#include "row_blocks.h"

namespace maskcl {

using MakeRows = std::function<void(const Block&, float* to, int64_t stride)>;
using UseRows = std::function<void(const Block&, const float* product, int64_t stride)>;

// Whether these rows and this weight are few enough.
bool few_rows(const Tensor& x, const Tensor& weight);

// y [N, O] = x [N, I] M^T + bias; make(block, to, stride) writes that block of M [O, I], whole rows. All are contiguous.
void few_rows_linear(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& y, const MakeRows& make);

// dx = grad M, where dx is wanted, and blocks of grad^T x handed to `use`, where there is one.
void few_rows_backward(const Tensor& grad, const Tensor& x, const Tensor* dx, const MakeRows& make, const UseRows* use);

}  // namespace maskcl
