// Masked activations, for the ops that are made of them: see masked_forward.cu and masked_activation_backward.cu.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

void masked_activation_(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                        const std::string& activation, double slope, int64_t channel_dim);

std::tuple<Tensor, Tensor, Tensor> masked_activation_backward(const Tensor& grad, const Tensor& saved,
                                                              const Tensor& mask, const std::optional<Tensor>& bias,
                                                              const std::string& activation, double slope,
                                                              int64_t channel_dim, bool from_output, bool mask_grad,
                                                              bool bias_grad);

}  // namespace maskcl::gpu
