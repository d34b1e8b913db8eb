// y = act(x + b) m on a GPU in one pass; the formulas are in csrc/formulas.h. Its backward is in
// masked_activation_backward.cu.
//
// Memory is [outer][channels][inner]. The activation is a switch inside the kernel, the same for all threads: next to
// the memory traffic it costs nothing, and a kernel per activation would be eight times the library.
#include "channel_vectors.cuh"

namespace maskcl::gpu {
namespace {

// A vector lies in one channel where inner > 1 (inner is a multiple of V), else in V neighbouring ones. x may be y.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
forward_kernel(const T* x, T* y, Parameters<compute_t<T>> p, int64_t count, int64_t channels, int64_t inner) {
  using C = compute_t<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V; at < count; at += step) {
    const int64_t channel = Division(inner == 1 ? at : Division(at, inner).quotient, channels).remainder;
    Vector<T, V> value = load<V>(x + at);
    C m[V], b[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int64_t c = inner == 1 ? channel + k : channel;
      m[k] = p.mask[c];
      b[k] = p.bias ? p.bias[c] : C(0);
    }
    dispatch_activation(p.activation, [&]<Activation A>() {
#pragma unroll
      for (int k = 0; k < V; ++k)
        value.at[k] = static_cast<T>(maskcl::masked_activation<A>(static_cast<C>(value.at[k]), b[k], m[k], p.slope));
    });
    store(y + at, value);
  }
}

void forward(const char* op, const Tensor& x, const Tensor& y, const Vectors& vectors, const Layout& layout,
             Activation activation, double slope) {
  dispatch_float(x.scalar_type(), op, [&]<typename T>() {
    const T* from = const_data<T>(x);
    T* to = data<T>(y);
    const auto p = vectors.parameters<compute_t<T>>(activation, slope, false);
    auto launch = [&]<int V>() {
      forward_kernel<T, V><<<grid_for(ceil_div(x.numel(), V), 1 << 16), kThreads, 0, current_stream(x)>>>(
          from, to, p, x.numel(), layout.channels, layout.inner);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (vectorizes<T>(layout, {from, to}))
      launch.template operator()<vector_width<T>>();
    else
      launch.template operator()<1>();
  });
}

}  // namespace

void masked_activation_(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                        const std::string& activation, double slope, int64_t channel_dim) {
  const char* op = "masked_activation_";
  const DeviceGuard guard(x.get_device_index());
  const int64_t channel = checked_channel(op, x, channel_dim);
  const Vectors vectors(op, x, mask, bias, x.size(channel));
  const Activation act = parse_activation(activation);
  if (x.numel() == 0) return;
  if (const auto layout = layout_of(x, channel)) return forward(op, x, x, vectors, *layout, act, slope);
  const Tensor dense = torch::stable::contiguous(x);
  forward(op, dense, dense, vectors, *layout_of(dense, channel), act, slope);
  Tensor to = x;
  torch::stable::copy_(to, dense);
}

Tensor masked_activation(const Tensor& x, const Tensor& mask, const std::optional<Tensor>& bias,
                         const std::string& activation, double slope, int64_t channel_dim) {
  const char* op = "masked_activation";
  const DeviceGuard guard(x.get_device_index());
  const int64_t channel = checked_channel(op, x, channel_dim);
  const Vectors vectors(op, x, mask, bias, x.size(channel));
  const Activation act = parse_activation(activation);
  Tensor y = fresh_like(x);
  if (x.numel() == 0) return y;
  const auto layout = layout_of(x, channel);
  if (layout && same_strides(x, y)) {
    forward(op, x, y, vectors, *layout, act, slope);
    return y;
  }
  const Tensor dense = torch::stable::contiguous(x), out = fresh_like(dense);
  forward(op, dense, out, vectors, *layout_of(dense, channel), act, slope);
  torch::stable::copy_(y, out);
  return y;
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("masked_activation", TORCH_BOX(&maskcl::gpu::masked_activation));
  m.impl("masked_activation_", TORCH_BOX(&maskcl::gpu::masked_activation_));
}
