// All gates of a network, for the ops that are made of them: see gate.cu.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

std::tuple<Tensor, Tensor> hat_gates(const Tensor& embedding, const Tensor& scale, const Tensor& share, double floor,
                                     double weight);

Tensor hat_gates_backward(std::vector<Tensor> grads, const Tensor& grad_term, const Tensor& embedding,
                          const Tensor& scale, const Tensor& share, std::vector<int64_t> sizes, double weight,
                          double max_scale, double cosh_clamp, bool recipe);

}  // namespace maskcl::gpu
