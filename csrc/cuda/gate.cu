// Gates, their gradient, and the sparsity term on a GPU; the formulas are in csrc/formulas.h.
#include "gates.cuh"

namespace maskcl::gpu {
namespace {

template <typename T, typename C>
__global__ void __launch_bounds__(kThreads)
gate_kernel(const T* embedding, Scalar<C> scale, C floor, C* mask, int64_t units) {
  const C s = scale.get();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step)
    mask[u] = maskcl::hat_gate(static_cast<C>(embedding[u]), s, floor);
}

template <typename C>
struct Compensation {
  C max_scale, cosh_clamp, tail;
  Compensating how;
};

template <typename T, typename C>
__global__ void __launch_bounds__(kThreads)
gate_backward_kernel(const C* grad, const T* embedding, const C* mask, Scalar<C> scale, Compensation<C> how,
                     T* out, int64_t units) {
  const C s = scale.get();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step)
    out[u] = static_cast<T>(maskcl::hat_gate_backward(grad[u], static_cast<C>(embedding[u]), mask[u], s,
                                                      how.max_scale, how.cosh_clamp, how.tail, how.how));
}

// Per block: sum m (1 - u) and sum (1 - u), in float64. partial is [2, blocks].
template <typename C, typename U>
__global__ void __launch_bounds__(kThreads)
sparsity_sums_kernel(const C* mask, const U* used, int64_t units, double* partial) {
  double taken = 0, free = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step) {
    const C f = C(1) - static_cast<C>(used[u]);
    taken += static_cast<double>(mask[u] * f);
    free += static_cast<double>(f);
  }
  taken = block_sum(taken);
  free = block_sum(free);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = taken;
    partial[gridDim.x + blockIdx.x] = free;
  }
}

__device__ double sum_partial(const double* partial, unsigned blocks) {
  double sum = 0;
  for (unsigned b = threadIdx.x; b < blocks; b += kThreads) sum += partial[b];
  return block_sum(sum);
}

template <typename C>
__global__ void __launch_bounds__(kThreads) sparsity_kernel(const double* partial, unsigned blocks, C* out) {
  const double taken = sum_partial(partial, blocks), free = sum_partial(partial + blocks, blocks);
  if (threadIdx.x == 0) *out = free > 0 ? static_cast<C>(taken / free) : C(0);
}

template <typename C, typename U>
__global__ void __launch_bounds__(kThreads)
sparsity_backward_kernel(Scalar<C> grad, const U* used, const double* partial, unsigned blocks, C* out,
                         int64_t units) {
  const C free = static_cast<C>(sum_partial(partial + blocks, blocks)), g = grad.get();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units; u += step)
    out[u] = free > C(0) ? g * (C(1) - static_cast<C>(used[u])) / free : C(0);
}

// Runs body<C, U>(typed mask, typed used) for the mask's dtype and bool or the mask's dtype of `used`.
template <typename F>
void dispatch_sparsity(const char* op, const Tensor& mask, const Tensor& used, F&& body) {
  check_cuda(op, "used", used, mask);
  check_units(op, "used", used, mask.numel());
  const ScalarType dtype = compute_dtype(mask.scalar_type());
  const bool bits = used.scalar_type() == ScalarType::Bool;
  const Tensor m = to_dtype(mask, dtype), u = to_dtype(used, bits ? ScalarType::Bool : dtype);
  auto with = [&]<typename C>() {
    if (bits) return body.template operator()<C, bool>(m, u);
    return body.template operator()<C, C>(m, u);
  };
  return dtype == ScalarType::Double ? with.template operator()<double>() : with.template operator()<float>();
}

template <typename C, typename U>
Tensor sparsity_sums(const Tensor& mask, const Tensor& used, unsigned blocks, cudaStream_t stream) {
  Tensor partial = empty_vector(mask, 2 * static_cast<int64_t>(blocks), ScalarType::Double);
  sparsity_sums_kernel<C, U><<<blocks, kThreads, 0, stream>>>(
      static_cast<const C*>(mask.const_data_ptr()), static_cast<const U*>(used.const_data_ptr()), mask.numel(),
      static_cast<double*>(partial.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return partial;
}

constexpr int kAtOnce = 8;  // units of a thread whose values are on their way together

// The mask and weight * sum mask share, by one block: units are some thousands, and a second launch would cost more.
template <typename T, typename C>
__global__ void __launch_bounds__(kThreads)
gates_kernel(const T* embedding, Scalar<C> scale, const C* share, C floor, double weight, C* mask, C* term,
             int64_t units) {
  const C s = scale.get();
  double sum = 0;
  for (int64_t first = threadIdx.x; first < units; first += kAtOnce * kThreads) {
    C e[kAtOnce], f[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t u = first + i * kThreads;
      e[i] = u < units ? static_cast<C>(embedding[u]) : C(0);
      f[i] = u < units ? share[u] : C(0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t u = first + i * kThreads;
      if (u >= units) break;
      const C m = maskcl::hat_gate(e[i], s, floor);
      mask[u] = m;
      sum += static_cast<double>(m) * static_cast<double>(f[i]);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *term = static_cast<C>(weight * sum);
}

constexpr int kParts = 64;  // of a mask, in one launch: a kernel's arguments have 4 kB

template <typename C>
struct Parts {
  const C* grad[kParts];  // nullptr for none
  int64_t begin[kParts + 1];
};

template <typename T, typename C>
__global__ void __launch_bounds__(kThreads)
gates_backward_kernel(Parts<C> parts, Scalar<C> grad_term, C weight, const T* embedding, Scalar<C> scale,
                      const C* share, Compensation<C> how, T* out) {
  const C s = scale.get(), term = weight * grad_term.get();
  const C* grad = parts.grad[blockIdx.y];
  const int64_t begin = parts.begin[blockIdx.y], end = parts.begin[blockIdx.y + 1];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t u = begin + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < end; u += step) {
    const C e = static_cast<C>(embedding[u]), g = (grad ? grad[u - begin] : C(0)) + term * share[u];
    out[u] = static_cast<T>(maskcl::hat_gate_backward(g, e, maskcl::hat_gate(e, s, C(0)), s, how.max_scale,
                                                      how.cosh_clamp, how.tail, how.how));
  }
}

}  // namespace

Tensor hat_gate(const Tensor& embedding, const Tensor& scale, double floor) {
  const DeviceGuard guard(embedding.get_device_index());
  const Tensor e = torch::stable::contiguous(embedding);
  Tensor mask = fresh(e, e.sizes(), compute_dtype(e.scalar_type())), typed;
  if (e.numel() == 0) return mask;
  dispatch_float(e.scalar_type(), "hat_gate", [&]<typename T>() {
    using C = compute_t<T>;
    const Scalar<C> s = scalar_of<C>("hat_gate", "scale", scale, e, typed);
    gate_kernel<T, C><<<grid_for(e.numel()), kThreads, 0, current_stream(e)>>>(
        static_cast<const T*>(e.const_data_ptr()), s, static_cast<C>(floor),
        static_cast<C*>(mask.mutable_data_ptr()), e.numel());
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
  check_units(op, "grad", grad, e.numel());
  check_units(op, "mask", mask, e.numel());
  const ScalarType dtype = compute_dtype(e.scalar_type());
  const Tensor g = to_dtype(grad, dtype), m = to_dtype(mask, dtype);
  Tensor out = fresh(e, e.sizes()), typed;
  if (e.numel() == 0) return out;
  dispatch_float(e.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const Compensation<C> how{static_cast<C>(max_scale), static_cast<C>(cosh_clamp),
                              static_cast<C>(1 + std::exp(-cosh_clamp)),
                              compensating(max_scale, recipe)};
    const Scalar<C> s = scalar_of<C>(op, "scale", scale, e, typed);
    gate_backward_kernel<T, C><<<grid_for(e.numel()), kThreads, 0, current_stream(e)>>>(
        static_cast<const C*>(g.const_data_ptr()), static_cast<const T*>(e.const_data_ptr()),
        static_cast<const C*>(m.const_data_ptr()), s, how, static_cast<T*>(out.mutable_data_ptr()), e.numel());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

std::tuple<Tensor, Tensor> hat_gates(const Tensor& embedding, const Tensor& scale, const Tensor& share, double floor,
                                     double weight) {
  const char* op = "hat_gates";
  const DeviceGuard guard(embedding.get_device_index());
  check_cuda(op, "share", share, embedding);
  check_units(op, "share", share, embedding.numel());
  const Tensor e = torch::stable::contiguous(embedding);
  const ScalarType dtype = compute_dtype(e.scalar_type());
  const Tensor f = to_dtype(share, dtype);
  Tensor mask = fresh(e, e.sizes(), dtype), term = fresh(e, {}, dtype), typed;
  dispatch_float(e.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const Scalar<C> s = scalar_of<C>(op, "scale", scale, e, typed);
    gates_kernel<T, C><<<1, kThreads, 0, current_stream(e)>>>(const_data<T>(e), s, const_data<C>(f),
                                                              static_cast<C>(floor), weight, data<C>(mask),
                                                              data<C>(term), e.numel());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {mask, term};
}

Tensor hat_gates_backward(std::vector<Tensor> grads, const Tensor& grad_term, const Tensor& embedding,
                          const Tensor& scale, const Tensor& share, std::vector<int64_t> sizes, double weight,
                          double max_scale, double cosh_clamp, bool recipe) {
  const char* op = "hat_gates_backward";
  const DeviceGuard guard(embedding.get_device_index());
  check_parts(op, grads, sizes, embedding.numel());
  check_cuda(op, "share", share, embedding);
  check_units(op, "share", share, embedding.numel());
  const Tensor e = torch::stable::contiguous(embedding);
  const ScalarType dtype = compute_dtype(e.scalar_type());
  const Tensor f = to_dtype(share, dtype);
  for (Tensor& grad : grads) {
    if (grad.numel()) check_cuda(op, "grads", grad, e);
    grad = to_dtype(grad, dtype);
  }
  Tensor out = fresh(e, e.sizes()), typed_scale, typed_term;
  dispatch_float(e.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const Compensation<C> how{static_cast<C>(max_scale), static_cast<C>(cosh_clamp),
                              static_cast<C>(1 + std::exp(-cosh_clamp)), compensating(max_scale, recipe)};
    const Scalar<C> s = scalar_of<C>(op, "scale", scale, e, typed_scale);
    const Scalar<C> term =
        grad_term.numel() ? scalar_of<C>(op, "grad_term", grad_term, e, typed_term) : Scalar<C>{nullptr, C(0)};
    int64_t at = 0;
    for (size_t first = 0; first < sizes.size(); first += kParts) {
      const size_t count = std::min(sizes.size() - first, static_cast<size_t>(kParts));
      Parts<C> parts{};
      int64_t longest = 0;
      for (size_t p = 0; p < count; ++p) {
        const Tensor& grad = grads[first + p];
        parts.grad[p] = grad.numel() ? const_data<C>(grad) : nullptr;
        parts.begin[p] = at;
        at += sizes[first + p];
        longest = std::max(longest, sizes[first + p]);
      }
      parts.begin[count] = at;
      if (longest == 0) continue;
      const dim3 grid(grid_for(longest), static_cast<unsigned>(count));
      gates_backward_kernel<T, C><<<grid, kThreads, 0, current_stream(e)>>>(
          parts, term, static_cast<C>(weight), const_data<T>(e), s, const_data<C>(f), how, data<T>(out));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return out;
}

Tensor hat_sparsity(const Tensor& mask, const Tensor& used) {
  const DeviceGuard guard(mask.get_device_index());
  Tensor out = fresh(mask, {}, compute_dtype(mask.scalar_type()));
  dispatch_sparsity("hat_sparsity", mask, used, [&]<typename C, typename U>(const Tensor& m, const Tensor& u) {
    const unsigned blocks = grid_for(m.numel(), kThreads);
    const Tensor partial = sparsity_sums<C, U>(m, u, blocks, current_stream(m));
    sparsity_kernel<C><<<1, kThreads, 0, current_stream(m)>>>(
        static_cast<const double*>(partial.const_data_ptr()), blocks, static_cast<C*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return to_dtype(out, mask.scalar_type());
}

Tensor hat_sparsity_backward(const Tensor& grad, const Tensor& mask, const Tensor& used) {
  const char* op = "hat_sparsity_backward";
  const DeviceGuard guard(mask.get_device_index());
  Tensor out = fresh(mask, mask.sizes(), compute_dtype(mask.scalar_type())), typed;
  if (mask.numel() == 0) return to_dtype(out, mask.scalar_type());
  dispatch_sparsity(op, mask, used, [&]<typename C, typename U>(const Tensor& m, const Tensor& u) {
    const unsigned blocks = grid_for(m.numel(), kThreads);
    const Tensor partial = sparsity_sums<C, U>(m, u, blocks, current_stream(m));
    const Scalar<C> g = scalar_of<C>(op, "grad", grad, m, typed);
    sparsity_backward_kernel<C, U><<<grid_for(m.numel()), kThreads, 0, current_stream(m)>>>(
        g, static_cast<const U*>(u.const_data_ptr()),
        static_cast<const double*>(partial.const_data_ptr()), blocks, static_cast<C*>(out.mutable_data_ptr()),
        m.numel());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return to_dtype(out, mask.scalar_type());
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("hat_gate", TORCH_BOX(&maskcl::gpu::hat_gate));
  m.impl("hat_gate_backward", TORCH_BOX(&maskcl::gpu::hat_gate_backward));
  m.impl("hat_gates", TORCH_BOX(&maskcl::gpu::hat_gates));
  m.impl("hat_gates_backward", TORCH_BOX(&maskcl::gpu::hat_gates_backward));
  m.impl("hat_sparsity", TORCH_BOX(&maskcl::gpu::hat_sparsity));
  m.impl("hat_sparsity_backward", TORCH_BOX(&maskcl::gpu::hat_sparsity_backward));
}
