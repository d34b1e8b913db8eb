// y = act(x + b) m and its backward on a GPU, one pass each; the formulas are in csrc/formulas.h.
//
// Memory is [outer][channels][inner]. The activation is a switch inside the kernel, the same for all threads: next to the
// memory traffic it costs nothing, and a kernel per activation would be eight times the library. Sums are two-stage
// (partial sums of a number of splits that depends on the shape alone, then a second kernel), so they are deterministic.
#include "common.cuh"

namespace maskcl::gpu {
namespace {

constexpr int64_t kMostSplits = 512;
constexpr int64_t kTargetBlocks = 1024;  // enough for every GPU sold so far; from no device, see above

template <typename C>
struct Parameters {
  const C* mask;
  const C* bias;  // null where there is none
  C slope;
  Activation activation;
  bool from_output;
};

// --- forward --------------------------------------------------------------------------------------------------------

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

// --- backward -------------------------------------------------------------------------------------------------------

// dz of a vector in place of `grad`, and its summands of dmask and dbias.
template <typename T, int V, typename C>
__device__ __forceinline__ void backward_vector(Vector<T, V>& grad, const Vector<T, V>& saved, const C* m, const C* b,
                                                const C* inverse_m, const Parameters<C>& p, C* da, C* dz) {
  dispatch_activation(p.activation, [&]<Activation A>() {
    constexpr bool may_keep_output =
        A != Activation::gelu && A != Activation::gelu_tanh && A != Activation::silu;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const C g = static_cast<C>(grad.at[k]), s = static_cast<C>(saved.at[k]);
      if (may_keep_output && p.from_output)
        maskcl::masked_activation_backward_from_output<A>(g, s, m[k], inverse_m[k], p.slope, &dz[k], &da[k]);
      else
        maskcl::masked_activation_backward_from_input<A>(g, s, b[k], m[k], p.slope, &dz[k], &da[k]);
      grad.at[k] = static_cast<T>(dz[k]);
    }
  });
}

template <typename C>
struct Channel {
  C m, b, inverse_m;
  __device__ __forceinline__ Channel(const Parameters<C>& p, int64_t c)
      : m(p.mask[c]), b(p.bias ? p.bias[c] : C(0)), inverse_m(maskcl::inverse_mask(m)) {}
};

// inner == 1: a thread keeps V channels and walks down the rows; a block's rows are summed in shared memory.
// blockDim is (lanes, rows), kThreads in all; the grid is (column blocks, splits). partial is [2][splits][channels].
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
backward_rows_kernel(const T* grad, const T* saved, T* dz, Parameters<compute_t<T>> p, int64_t rows, int64_t channels,
                     compute_t<T>* partial) {
  using C = compute_t<T>;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  C sum_a[V] = {}, sum_z[V] = {};
  if (column < channels) {
    C m[V], b[V], inverse_m[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const Channel<C> c(p, column + k);
      m[k] = c.m, b[k] = c.b, inverse_m[k] = c.inverse_m;
    }
    const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += step) {
      const int64_t at = row * channels + column;
      Vector<T, V> value = load<V>(grad + at);
      C a[V], z[V];
      backward_vector(value, load<V>(saved + at), m, b, inverse_m, p, a, z);
      store(dz + at, value);
#pragma unroll
      for (int k = 0; k < V; ++k) sum_a[k] += a[k], sum_z[k] += z[k];
    }
  }
  if (partial == nullptr) return;
  __shared__ C shared_a[kThreads][V], shared_z[kThreads][V];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < V; ++k) shared_a[thread][k] = sum_a[k], shared_z[thread][k] = sum_z[k];
  __syncthreads();
  if (threadIdx.y != 0 || column >= channels) return;
  for (unsigned y = 1; y < blockDim.y; ++y)
#pragma unroll
    for (int k = 0; k < V; ++k) {
      sum_a[k] += shared_a[y * blockDim.x + threadIdx.x][k];
      sum_z[k] += shared_z[y * blockDim.x + threadIdx.x][k];
    }
  C* to = partial + static_cast<int64_t>(blockIdx.y) * channels + column;
#pragma unroll
  for (int k = 0; k < V; ++k) to[k] = sum_a[k], to[gridDim.y * channels + k] = sum_z[k];
}

// inner > 1: a warp keeps one channel and walks over its outer * inner elements; inner is a multiple of V.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
backward_planes_kernel(const T* grad, const T* saved, T* dz, Parameters<compute_t<T>> p, Layout layout,
                       compute_t<T>* partial) {
  using C = compute_t<T>;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= layout.channels) return;
  const Channel<C> c(p, channel);
  C m[V], b[V], inverse_m[V];
#pragma unroll
  for (int k = 0; k < V; ++k) m[k] = c.m, b[k] = c.b, inverse_m[k] = c.inverse_m;
  C sum_a = 0, sum_z = 0;
  const int64_t count = layout.outer * layout.inner, step = static_cast<int64_t>(gridDim.y) * kWarp * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.y) * kWarp + threadIdx.x % kWarp) * V; i < count; i += step) {
    const Division plane(i, layout.inner);
    const int64_t at = (plane.quotient * layout.channels + channel) * layout.inner + plane.remainder;
    Vector<T, V> value = load<V>(grad + at);
    C a[V], z[V];
    backward_vector(value, load<V>(saved + at), m, b, inverse_m, p, a, z);
    store(dz + at, value);
#pragma unroll
    for (int k = 0; k < V; ++k) sum_a += a[k], sum_z += z[k];
  }
  if (partial == nullptr) return;
  sum_a = warp_sum(sum_a);
  sum_z = warp_sum(sum_z);
  if (threadIdx.x % kWarp == 0) {
    C* to = partial + static_cast<int64_t>(blockIdx.y) * layout.channels + channel;
    to[0] = sum_a;
    to[gridDim.y * layout.channels] = sum_z;
  }
}

// Adds up the splits; blockDim is (32 channels, 8), gridDim.y chooses dmask or dbias.
template <typename C>
__global__ void __launch_bounds__(kThreads)
finish_kernel(const C* partial, int64_t splits, int64_t channels, const C* mask, bool divide, C* dmask, C* dbias) {
  C* to = blockIdx.y == 0 ? dmask : dbias;
  if (to == nullptr) return;
  const C* from = partial + blockIdx.y * splits * channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  C sum = 0;
  if (channel < channels)
    for (int64_t s = threadIdx.y; s < splits; s += blockDim.y) sum += from[s * channels + channel];
  __shared__ C sums[kThreads / kWarp][kWarp];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= channels) return;
  for (unsigned y = 1; y < blockDim.y; ++y) sum += sums[y][threadIdx.x];
  to[channel] = blockIdx.y == 0 ? mask_grad(sum, mask[channel], divide) : sum;
}

bool divides(Activation activation) {
  return activation == Activation::identity || activation == Activation::relu || activation == Activation::leaky_relu;
}

// --- launches -------------------------------------------------------------------------------------------------------

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
  Parameters<C> parameters(double slope, Activation activation, bool from_output) const {
    return {static_cast<const C*>(mask.const_data_ptr()),
            has_bias ? static_cast<const C*>(bias.const_data_ptr()) : nullptr, static_cast<C>(slope), activation,
            from_output};
  }
};

int64_t checked_channel(const char* op, const Tensor& x, int64_t channel_dim) {
  const int64_t channel = channel_dim < 0 ? channel_dim + x.dim() : channel_dim;
  MASKCL_CHECK(channel >= 0 && channel < x.dim(), op, ": channel_dim is ", channel_dim, ", x has ", x.dim(),
               " dimensions");
  return channel;
}

template <typename T>
bool vectorizes(const Layout& layout, std::initializer_list<const void*> pointers) {
  const int64_t run = layout.inner == 1 ? layout.channels : layout.inner;
  return run % vector_width<T> == 0 && std::all_of(pointers.begin(), pointers.end(), aligned16);
}

void forward(const char* op, const Tensor& x, const Tensor& y, const Vectors& vectors, const Layout& layout,
             Activation activation, double slope) {
  dispatch_float(x.scalar_type(), op, [&]<typename T>() {
    const T* from = static_cast<const T*>(x.const_data_ptr());
    T* to = static_cast<T*>(y.mutable_data_ptr());
    const auto p = vectors.parameters<compute_t<T>>(slope, activation, false);
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

template <typename T, int V>
int64_t backward_rows(const T* grad, const T* saved, T* dz, const Parameters<compute_t<T>>& p, const Layout& layout,
                      compute_t<T>* partial, int64_t splits, cudaStream_t stream) {
  unsigned lanes = kWarp;
  while (lanes > 1 && ceil_div(layout.channels, V) <= lanes / 2) lanes /= 2;  // few channels: more rows at a time
  const dim3 block(lanes, kThreads / lanes);
  const int64_t columns = ceil_div(layout.channels, static_cast<int64_t>(lanes) * V);
  if (splits == 0)  // asked how many splits suit
    return std::clamp<int64_t>(ceil_div(kTargetBlocks, columns), 1,
                               std::min(kMostSplits, ceil_div(layout.outer, 4 * block.y)));
  const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(splits));
  backward_rows_kernel<T, V><<<grid, block, 0, stream>>>(grad, saved, dz, p, layout.outer, layout.channels, partial);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return splits;
}

template <typename T, int V>
int64_t backward_planes(const T* grad, const T* saved, T* dz, const Parameters<compute_t<T>>& p, const Layout& layout,
                        compute_t<T>* partial, int64_t splits, cudaStream_t stream) {
  const int64_t columns = ceil_div(layout.channels, kThreads / kWarp);
  if (splits == 0)
    return std::clamp<int64_t>(ceil_div(kTargetBlocks, columns), 1,
                               std::min(kMostSplits, ceil_div(layout.outer * layout.inner, 4 * kWarp * V)));
  const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(splits));
  backward_planes_kernel<T, V><<<grid, kThreads, 0, stream>>>(grad, saved, dz, p, layout, partial);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return splits;
}

// dz, and where asked for the sums; dmask and dbias are empty tensors where not.
void backward(const char* op, const Tensor& grad, const Tensor& saved, const Tensor& dz, const Vectors& vectors,
              const Layout& layout, Activation activation, double slope, bool from_output, const Tensor& dmask,
              const Tensor& dbias) {
  const cudaStream_t stream = current_stream(saved);
  const bool sums = dmask.numel() > 0 || dbias.numel() > 0;
  dispatch_float(saved.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const T *g = static_cast<const T*>(grad.const_data_ptr()), *s = static_cast<const T*>(saved.const_data_ptr());
    T* z = static_cast<T*>(dz.mutable_data_ptr());
    const auto p = vectors.parameters<C>(slope, activation, from_output);
    auto run = [&](C* partial, int64_t splits) {
      constexpr int V = vector_width<T>;
      if (vectorizes<T>(layout, {g, s, z}))
        return layout.inner == 1 ? backward_rows<T, V>(g, s, z, p, layout, partial, splits, stream)
                                 : backward_planes<T, V>(g, s, z, p, layout, partial, splits, stream);
      return layout.inner == 1 ? backward_rows<T, 1>(g, s, z, p, layout, partial, splits, stream)
                               : backward_planes<T, 1>(g, s, z, p, layout, partial, splits, stream);
    };
    const int64_t splits = run(nullptr, 0);
    if (!sums) return static_cast<void>(run(nullptr, splits));
    const Tensor partial = empty_vector(saved, 2 * splits * layout.channels, compute_dtype(saved.scalar_type()));
    C* sum = static_cast<C*>(partial.mutable_data_ptr());
    run(sum, splits);
    const dim3 grid(static_cast<unsigned>(ceil_div(layout.channels, kWarp)), 2), block(kWarp, kThreads / kWarp);
    finish_kernel<C><<<grid, block, 0, stream>>>(
        sum, splits, layout.channels, p.mask, from_output && divides(activation),
        dmask.numel() ? static_cast<C*>(dmask.mutable_data_ptr()) : nullptr,
        dbias.numel() ? static_cast<C*>(dbias.mutable_data_ptr()) : nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
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
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  const auto layout = layout_of(x, channel);
  if (layout && same_strides(x, y)) {
    forward(op, x, y, vectors, *layout, act, slope);
    return y;
  }
  const Tensor dense = torch::stable::contiguous(x), out = torch::stable::empty_like(dense);
  forward(op, dense, out, vectors, *layout_of(dense, channel), act, slope);
  torch::stable::copy_(y, out);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> masked_activation_backward(const Tensor& grad, const Tensor& saved,
                                                              const Tensor& mask, const std::optional<Tensor>& bias,
                                                              const std::string& activation, double slope,
                                                              int64_t channel_dim, bool from_output, bool mask_grad,
                                                              bool bias_grad) {
  const char* op = "masked_activation_backward";
  const DeviceGuard guard(saved.get_device_index());
  check_cuda(op, "grad", grad, saved);
  MASKCL_CHECK(grad.numel() == saved.numel() && grad.dim() == saved.dim(), op, ": grad has ", grad.numel(),
               " elements in ", grad.dim(), " dimensions, saved ", saved.numel(), " in ", saved.dim());
  const int64_t channel = checked_channel(op, saved, channel_dim), channels = saved.size(channel);
  const Vectors vectors(op, saved, mask, bias, channels);
  const Activation act = parse_activation(activation);
  const bool keeps_input = act == Activation::gelu || act == Activation::gelu_tanh || act == Activation::silu;
  MASKCL_CHECK(!(from_output && keeps_input), op, ": ", activation, " has no derivative in terms of its output");
  const ScalarType dtype = compute_dtype(saved.scalar_type());
  Tensor dmask = empty_vector(saved, mask_grad ? channels : 0, dtype);
  Tensor dbias = empty_vector(saved, bias_grad ? channels : 0, dtype);
  Tensor dz = torch::stable::empty_like(saved);
  if (saved.numel() == 0) {
    torch::stable::zero_(dmask);
    torch::stable::zero_(dbias);
    return {dz, dmask, dbias};
  }
  const bool direct = layout_of(saved, channel).has_value() && same_strides(saved, dz);
  const Tensor s = direct ? saved : torch::stable::contiguous(saved);
  const Tensor out = direct ? dz : torch::stable::empty_like(s);
  const Tensor typed = grad.scalar_type() == s.scalar_type() ? grad : torch::stable::to(grad, s.scalar_type());
  backward(op, in_order_of(typed, s), s, out, vectors, *layout_of(s, channel), act, slope, from_output, dmask, dbias);
  if (!direct) torch::stable::copy_(dz, out);
  return {dz, dmask, dbias};
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("masked_activation", TORCH_BOX(&maskcl::gpu::masked_activation));
  m.impl("masked_activation_", TORCH_BOX(&maskcl::gpu::masked_activation_));
  m.impl("masked_activation_backward", TORCH_BOX(&maskcl::gpu::masked_activation_backward));
}
