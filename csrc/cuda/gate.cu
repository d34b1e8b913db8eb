// Gates, their gradient, and the sparsity term on a GPU; the formulas are in csrc/formulas.h.
#include "common.cuh"

namespace maskcl::gpu {
namespace {

template <typename E, typename T>
__global__ void __launch_bounds__(kThreads)
gate_kernel(const E* embedding, Scalar<T> scale, T* mask, int64_t units) {
  const T s = scale.get();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step)
    mask[u] = maskcl::hat_gate(static_cast<T>(embedding[u]), s);
}

template <typename T>
struct Compensation {
  T max_scale, cosh_clamp, tail;
  Compensating how;
};

template <typename E, typename T>
__global__ void __launch_bounds__(kThreads)
gate_backward_kernel(const T* grad, const E* embedding, const T* mask, Scalar<T> scale, Compensation<T> how,
                     E* out, int64_t units) {
  const T s = scale.get();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step)
    out[u] = static_cast<E>(maskcl::hat_gate_backward(grad[u], static_cast<T>(embedding[u]), mask[u], s,
                                                      how.max_scale, how.cosh_clamp, how.tail, how.how));
}

// Per block: sum m (1 - u) and sum (1 - u), in float64. partial is [2, blocks].
template <typename T, typename U>
__global__ void __launch_bounds__(kThreads)
sparsity_sums_kernel(const T* mask, const U* used, int64_t units, double* partial) {
  double weighted = 0, free = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step) {
    const T f = T(1) - static_cast<T>(used[u]);
    weighted += static_cast<double>(mask[u] * f);
    free += static_cast<double>(f);
  }
  weighted = block_sum(weighted);
  free = block_sum(free);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = weighted;
    partial[gridDim.x + blockIdx.x] = free;
  }
}

__device__ double sum_partial(const double* partial, unsigned blocks) {
  double sum = 0;
  for (unsigned b = threadIdx.x; b < blocks; b += kThreads) sum += partial[b];
  return block_sum(sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) sparsity_kernel(const double* partial, unsigned blocks, T* out) {
  const double weighted = sum_partial(partial, blocks), free = sum_partial(partial + blocks, blocks);
  if (threadIdx.x == 0) *out = free > 0 ? static_cast<T>(weighted / free) : T(0);
}

template <typename T, typename U>
__global__ void __launch_bounds__(kThreads)
sparsity_backward_kernel(Scalar<T> grad, const U* used, const double* partial, unsigned blocks, T* out,
                         int64_t units) {
  const T free = static_cast<T>(sum_partial(partial + blocks, blocks)), g = grad.get();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step)
    out[u] = free > T(0) ? g * (T(1) - static_cast<T>(used[u])) / free : T(0);
}

// Runs body<T, U>(typed mask, typed used) for the mask's dtype and bool or the mask's dtype of `used`.
template <typename F>
void dispatch_sparsity(const char* op, const Tensor& mask, const Tensor& used, F&& body) {
  check_cuda(op, "used", used, mask);
  MASKCL_CHECK(used.numel() == mask.numel(), op, ": used has ", used.numel(), " units, mask has ", mask.numel());
  const ScalarType dtype = compute_dtype(mask.scalar_type());
  const bool bits = used.scalar_type() == ScalarType::Bool;
  const Tensor m = to_dtype(mask, dtype), u = to_dtype(used, bits ? ScalarType::Bool : dtype);
  auto with = [&]<typename T>() {
    if (bits) return body.template operator()<T, bool>(m, u);
    return body.template operator()<T, T>(m, u);
  };
  return dtype == ScalarType::Double ? with.template operator()<double>() : with.template operator()<float>();
}

template <typename T, typename U>
Tensor sparsity_sums(const Tensor& mask, const Tensor& used, unsigned blocks, cudaStream_t stream) {
  Tensor partial = empty_vector(mask, 2 * static_cast<int64_t>(blocks), ScalarType::Double);
  sparsity_sums_kernel<T, U><<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(mask.const_data_ptr()), static_cast<const U*>(used.const_data_ptr()), mask.numel(),
      static_cast<double*>(partial.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return partial;
}

}  // namespace

Tensor hat_gate(const Tensor& embedding, const Tensor& scale) {
  const DeviceGuard guard(embedding.get_device_index());
  const Tensor e = torch::stable::contiguous(embedding);
  Tensor mask = torch::stable::new_empty(e, e.sizes(), compute_dtype(e.scalar_type())), typed;
  if (e.numel() == 0) return mask;
  dispatch_float(e.scalar_type(), "hat_gate", [&]<typename E>() {
    using T = compute_t<E>;
    gate_kernel<E, T><<<grid_for(e.numel()), kThreads, 0, current_stream(e)>>>(
        static_cast<const E*>(e.const_data_ptr()), scalar_of<T>("hat_gate", "scale", scale, e, typed),
        static_cast<T*>(mask.mutable_data_ptr()), e.numel());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return mask;
}

Tensor hat_gate_backward(const Tensor& grad, const Tensor& embedding, const Tensor& mask, const Tensor& scale,
                         double max_scale, double cosh_clamp, bool recipe) {
  const char* op = "hat_gate_backward";
  const DeviceGuard guard(embedding.get_device_index());
  check_cuda(op, "grad", grad, embedding);
  check_cuda(op, "mask", mask, embedding);
  const Tensor e = torch::stable::contiguous(embedding);
  MASKCL_CHECK(grad.numel() == e.numel() && mask.numel() == e.numel(), op, ": grad has ", grad.numel(),
               " units, mask ", mask.numel(), ", embedding ", e.numel());
  const ScalarType dtype = compute_dtype(e.scalar_type());
  const Tensor g = to_dtype(grad, dtype), m = to_dtype(mask, dtype);
  Tensor out = torch::stable::new_empty(e, e.sizes()), typed;
  if (e.numel() == 0) return out;
  dispatch_float(e.scalar_type(), op, [&]<typename E>() {
    using T = compute_t<E>;
    const Compensation<T> how{static_cast<T>(max_scale), static_cast<T>(cosh_clamp),
                              static_cast<T>(1 + std::exp(-cosh_clamp)),
                              compensating(max_scale, recipe)};
    gate_backward_kernel<E, T><<<grid_for(e.numel()), kThreads, 0, current_stream(e)>>>(
        static_cast<const T*>(g.const_data_ptr()), static_cast<const E*>(e.const_data_ptr()),
        static_cast<const T*>(m.const_data_ptr()), scalar_of<T>(op, "scale", scale, e, typed), how,
        static_cast<E*>(out.mutable_data_ptr()), e.numel());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

Tensor hat_sparsity(const Tensor& mask, const Tensor& used) {
  const DeviceGuard guard(mask.get_device_index());
  Tensor out = torch::stable::new_empty(mask, {}, compute_dtype(mask.scalar_type()));
  dispatch_sparsity("hat_sparsity", mask, used, [&]<typename T, typename U>(const Tensor& m, const Tensor& u) {
    const unsigned blocks = grid_for(m.numel(), kThreads);
    const Tensor partial = sparsity_sums<T, U>(m, u, blocks, current_stream(m));
    sparsity_kernel<T><<<1, kThreads, 0, current_stream(m)>>>(
        static_cast<const double*>(partial.const_data_ptr()), blocks, static_cast<T*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return to_dtype(out, mask.scalar_type());
}

Tensor hat_sparsity_backward(const Tensor& grad, const Tensor& mask, const Tensor& used) {
  const char* op = "hat_sparsity_backward";
  const DeviceGuard guard(mask.get_device_index());
  Tensor out = torch::stable::new_empty(mask, mask.sizes(), compute_dtype(mask.scalar_type())), typed;
  if (mask.numel() == 0) return to_dtype(out, mask.scalar_type());
  dispatch_sparsity(op, mask, used, [&]<typename T, typename U>(const Tensor& m, const Tensor& u) {
    const unsigned blocks = grid_for(m.numel(), kThreads);
    const Tensor partial = sparsity_sums<T, U>(m, u, blocks, current_stream(m));
    sparsity_backward_kernel<T, U><<<grid_for(m.numel()), kThreads, 0, current_stream(m)>>>(
        scalar_of<T>(op, "grad", grad, m, typed), static_cast<const U*>(u.const_data_ptr()),
        static_cast<const double*>(partial.const_data_ptr()), blocks, static_cast<T*>(out.mutable_data_ptr()),
        m.numel());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return to_dtype(out, mask.scalar_type());
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("hat_gate", TORCH_BOX(&maskcl::gpu::hat_gate));
  m.impl("hat_gate_backward", TORCH_BOX(&maskcl::gpu::hat_gate_backward));
  m.impl("hat_sparsity", TORCH_BOX(&maskcl::gpu::hat_sparsity));
  m.impl("hat_sparsity_backward", TORCH_BOX(&maskcl::gpu::hat_sparsity_backward));
}
