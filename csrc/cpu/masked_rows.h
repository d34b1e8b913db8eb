// Activations with masks on the rows of a linear layer's output, for the ops that are made of them.
#pragma once

#include "parallel.h"

namespace maskcl {

// y [N, O] = act(y) mask, in place; y is contiguous. See masked_forward.cpp.
void mask_rows(const Tensor& y, const Tensor& mask, Activation act, double slope);

// Of its output y: dz [N, O] from grad, which may be the same tensor; and dmask, dbias [O] where they are wanted, of the
// dtype that sums have. All are contiguous. See masked_activation_backward.cpp.
void mask_rows_backward(const Tensor& grad, const Tensor& y, const Tensor& mask, Activation act, double slope,
                        const Tensor& dz, const Tensor* dmask, const Tensor* dbias);

}  // namespace maskcl
