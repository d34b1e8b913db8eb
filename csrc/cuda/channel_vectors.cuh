// The mask and bias of channels, as the kernels of masked activations take them, and where memory has the channels.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

template <typename C>
struct Parameters {
  const C* mask;
  const C* bias;  // null where there is none
  Activation activation;
  C slope;
  bool from_output;
};

// Mask and bias in the dtype of the arithmetic, kept alive until the launch.
struct Vectors {
  Tensor mask, bias;
  bool has_bias;

  Vectors(const char* op, const Tensor& x, const Tensor& m, const std::optional<Tensor>& b, int64_t channels)
      : has_bias(b.has_value()) {
    check_cuda(op, "mask", m, x);
    check_channels(op, "mask", m, channels);
    mask = to_dtype(m, compute_dtype(x.scalar_type()));
    if (!has_bias) return;
    check_cuda(op, "bias", *b, x);
    check_channels(op, "bias", *b, channels);
    bias = to_dtype(*b, compute_dtype(x.scalar_type()));
  }

  template <typename C>
  Parameters<C> parameters(Activation activation, double slope, bool from_output) const {
    return {const_data<C>(mask), has_bias ? const_data<C>(bias) : nullptr, activation, static_cast<C>(slope),
            from_output};
  }
};

// Whether vectors of 16 bytes are whole and aligned, and lie in one channel each or in neighbouring ones.
template <typename T>
bool vectorizes(const Layout& layout, std::initializer_list<const void*> pointers) {
  const int64_t run = layout.inner == 1 ? layout.channels : layout.inner;
  return run % vector_width<T> == 0 && std::all_of(pointers.begin(), pointers.end(), aligned16);
}

}  // namespace maskcl::gpu
