// The backward of y = act(x + b) m on a GPU in one pass; the formulas are in csrc/formulas.h.
//
// Memory is [outer][channels][inner]; the activation is a switch inside the kernel, as in masked_forward.cu. Sums are
// two-stage (partial sums of a number of splits that depends on the shape alone, then a second kernel), so they are
// deterministic.
#include "channel_vectors.cuh"

namespace maskcl::gpu {
namespace {

constexpr int64_t kMostSplits = 512;
constexpr int64_t kTargetBlocks = 1024;  // enough for every GPU sold so far; asked of no device

// --- kernels --------------------------------------------------------------------------------------------------------

// dz of a vector in place of `grad`, and its summands of dbias and dmask.
template <typename T, int V, typename C>
__device__ __forceinline__ void backward_vector(Vector<T, V>& grad, const Vector<T, V>& saved, const C* b, const C* m,
                                                const C* inverse_m, const Parameters<C>& p, C* dz, C* da) {
  dispatch_activation(p.activation, [&]<Activation A>() {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const C g = static_cast<C>(grad.at[k]), s = static_cast<C>(saved.at[k]);
      if (has_slope_from_output(A) && p.from_output)
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
// Vectors of float64 would be spilled for a third block on a multiprocessor; 0 leaves the others to the compiler.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 && V > 1 ? 2 : 0)
backward_rows_kernel(const T* grad, const T* saved, T* dz, Parameters<compute_t<T>> p, int64_t rows, int64_t channels,
                     compute_t<T>* partial) {
  using C = compute_t<T>;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  C sum_m[V] = {}, sum_b[V] = {};
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
      C z[V], a[V];
      backward_vector(value, load<V>(saved + at), b, m, inverse_m, p, z, a);
      store(dz + at, value);
#pragma unroll
      for (int k = 0; k < V; ++k) sum_m[k] += a[k], sum_b[k] += z[k];
    }
  }
  if (partial == nullptr) return;
  __shared__ C shared_m[kThreads][V], shared_b[kThreads][V];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < V; ++k) shared_m[thread][k] = sum_m[k], shared_b[thread][k] = sum_b[k];
  __syncthreads();
  if (threadIdx.y != 0 || column >= channels) return;
  for (unsigned y = 1; y < blockDim.y; ++y)
#pragma unroll
    for (int k = 0; k < V; ++k) {
      sum_m[k] += shared_m[y * blockDim.x + threadIdx.x][k];
      sum_b[k] += shared_b[y * blockDim.x + threadIdx.x][k];
    }
  C* to = partial + static_cast<int64_t>(blockIdx.y) * channels + column;
#pragma unroll
  for (int k = 0; k < V; ++k) to[k] = sum_m[k], to[gridDim.y * channels + k] = sum_b[k];
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
  C sum_m = 0, sum_b = 0;
  const int64_t count = layout.outer * layout.inner, step = static_cast<int64_t>(gridDim.y) * kWarp * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.y) * kWarp + threadIdx.x % kWarp) * V; i < count; i += step) {
    const Division plane(i, layout.inner);
    const int64_t at = (plane.quotient * layout.channels + channel) * layout.inner + plane.remainder;
    Vector<T, V> value = load<V>(grad + at);
    C z[V], a[V];
    backward_vector(value, load<V>(saved + at), b, m, inverse_m, p, z, a);
    store(dz + at, value);
#pragma unroll
    for (int k = 0; k < V; ++k) sum_m += a[k], sum_b += z[k];
  }
  if (partial == nullptr) return;
  sum_m = warp_sum(sum_m);
  sum_b = warp_sum(sum_b);
  if (threadIdx.x % kWarp == 0) {
    C* to = partial + static_cast<int64_t>(blockIdx.y) * layout.channels + channel;
    to[0] = sum_m;
    to[gridDim.y * layout.channels] = sum_b;
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

// --- launches -------------------------------------------------------------------------------------------------------

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
    const T *g = const_data<T>(grad), *s = const_data<T>(saved);
    T* z = data<T>(dz);
    const auto p = vectors.parameters<C>(activation, slope, from_output);
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
    C* sum = data<C>(partial);
    run(sum, splits);
    const dim3 grid(static_cast<unsigned>(ceil_div(layout.channels, kWarp)), 2), block(kWarp, kThreads / kWarp);
    finish_kernel<C><<<grid, block, 0, stream>>>(
        sum, splits, layout.channels, p.mask, from_output && divides_once(activation),
        dmask.numel() ? data<C>(dmask) : nullptr, dbias.numel() ? data<C>(dbias) : nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> masked_activation_backward(const Tensor& grad, const Tensor& saved,
                                                              const Tensor& mask, const std::optional<Tensor>& bias,
                                                              const std::string& activation, double slope,
                                                              int64_t channel_dim, bool from_output, bool mask_grad,
                                                              bool bias_grad) {
  const char* op = "masked_activation_backward";
  const DeviceGuard guard(saved.get_device_index());
  check_same_shape(op, "grad", grad, saved, "saved");
  const int64_t channel = checked_channel(op, saved, channel_dim), channels = saved.size(channel);
  const Vectors vectors(op, saved, mask, bias, channels);
  const Activation act = parse_activation(activation);
  check_from_output(op, act, from_output);
  const ScalarType dtype = compute_dtype(saved.scalar_type());
  Tensor dmask = empty_vector(saved, mask_grad ? channels : 0, dtype);
  Tensor dbias = empty_vector(saved, bias_grad ? channels : 0, dtype);
  Tensor dz = fresh_like(saved);
  if (saved.numel() == 0) {
    torch::stable::zero_(dmask);
    torch::stable::zero_(dbias);
    return {dz, dmask, dbias};
  }
  const bool direct = layout_of(saved, channel).has_value() && same_strides(saved, dz);
  const Tensor s = direct ? saved : torch::stable::contiguous(saved);
  const Tensor out = direct ? dz : fresh_like(s);
  const Tensor g = in_order_of(in_dtype(grad, s.scalar_type()), s);
  backward(op, g, s, out, vectors, *layout_of(s, channel), act, slope, from_output, dmask, dbias);
  if (!direct) torch::stable::copy_(dz, out);
  return {dz, dmask, dbias};
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("masked_activation_backward", TORCH_BOX(&maskcl::gpu::masked_activation_backward));
}
