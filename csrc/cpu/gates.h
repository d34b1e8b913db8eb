// All gates of a network, for the ops that are made of them: see gate.cpp.
#pragma once

#include "parallel.h"

namespace maskcl {

// The mask [U] and the weighted term [] of the loss.
std::tuple<Tensor, Tensor> hat_gates_cpu(const Tensor& embedding, const Tensor& scale, const Tensor& share,
                                         double floor, double weight);

// The embedding's gradient, from those of the mask's parts and of the term; without elements: none.
Tensor hat_gates_backward_cpu(std::vector<Tensor> grads, const Tensor& grad_term, const Tensor& embedding,
                              const Tensor& scale, const Tensor& share, std::vector<int64_t> sizes, double weight,
                              double max_scale, double cosh_clamp, bool recipe);

}  // namespace maskcl
