// Gates of all units of a network: a few thousand elements, one pass.

#include "parallel.h"

namespace maskcl {
namespace {

using torch::stable::empty_like;

constexpr int64_t kCost = 4;  // a gate costs about as much as so many elements of a plain pass

// What a gate's gradient needs besides its unit's numbers.
template <typename C>
struct Compensation {
  C scale, max_scale, cosh_clamp, tail;
  Compensating how;
};

template <typename T, typename C>
MASKCL_INLINE void forward_units(const T* e, C* m, C s, int64_t begin, int64_t end) {
  MASKCL_VECTORIZE
  for (int64_t i = begin; i < end; ++i) m[i] = hat_gate(static_cast<C>(e[i]), s);
}

template <Compensating How, typename T, typename C>
MASKCL_INLINE void backward_loop(const C* g, const T* e, const C* m, T* out, Compensation<C> c, int64_t begin,
                                 int64_t end) {
  MASKCL_VECTORIZE
  for (int64_t i = begin; i < end; ++i)
    out[i] = static_cast<T>(
        hat_gate_backward<How>(g[i], static_cast<C>(e[i]), m[i], c.scale, c.max_scale, c.cosh_clamp, c.tail));
}

template <typename T, typename C>
MASKCL_INLINE void backward_units(const C* g, const T* e, const C* m, T* out, Compensation<C> c, int64_t begin,
                                  int64_t end) {
  switch (c.how) {
    case Compensating::none_exact: return backward_loop<Compensating::none_exact>(g, e, m, out, c, begin, end);
    case Compensating::none_recipe: return backward_loop<Compensating::none_recipe>(g, e, m, out, c, begin, end);
    case Compensating::exact: return backward_loop<Compensating::exact>(g, e, m, out, c, begin, end);
    case Compensating::recipe: return backward_loop<Compensating::recipe>(g, e, m, out, c, begin, end);
  }
}

// Embeddings are float32; the other dtypes work, and need no clones.
MASKCL_CLONES void run_forward(const float* e, float* m, float s, int64_t begin, int64_t end) {
  forward_units(e, m, s, begin, end);
}
MASKCL_CLONES void run_backward(const float* g, const float* e, const float* m, float* out, Compensation<float> c,
                                int64_t begin, int64_t end) {
  backward_units(g, e, m, out, c, begin, end);
}
template <typename T, typename C>
void run_forward(const T* e, C* m, C s, int64_t begin, int64_t end) {
  forward_units(e, m, s, begin, end);
}
template <typename T, typename C>
void run_backward(const C* g, const T* e, const C* m, T* out, Compensation<C> c, int64_t begin, int64_t end) {
  backward_units(g, e, m, out, c, begin, end);
}

double scalar(const Tensor& x) {
  double value = 0;
  dispatch_float(x.scalar_type(), "hat_gate: scale", [&]<typename T>() {
    value = static_cast<double>(*static_cast<const T*>(x.const_data_ptr()));
  });
  return value;
}

Tensor hat_gate_cpu(const Tensor& embedding, const Tensor& scale) {
  const Tensor e = torch::stable::contiguous(embedding);
  const Tensor m = torch::stable::new_empty(e, e.sizes(), compute_dtype(e.scalar_type()));
  dispatch_float(e.scalar_type(), "hat_gate", [&]<typename T>() {
    using C = compute_t<T>;
    const T* from = static_cast<const T*>(e.const_data_ptr());
    C* to = static_cast<C*>(m.mutable_data_ptr());
    const C s = static_cast<C>(scalar(scale));
    parallel(e.numel(), kCost, [&](int64_t begin, int64_t end) { run_forward(from, to, s, begin, end); });
  });
  return m;
}

Tensor hat_gate_backward_cpu(const Tensor& grad, const Tensor& embedding, const Tensor& mask, const Tensor& scale,
                             double max_scale, double cosh_clamp, bool recipe) {
  const Tensor e = torch::stable::contiguous(embedding), m = torch::stable::contiguous(mask);
  const Tensor g = to_dtype(grad, m.scalar_type());
  const Tensor out = empty_like(e);
  dispatch_float(e.scalar_type(), "hat_gate_backward", [&]<typename T>() {
    using C = compute_t<T>;
    const T* pe = static_cast<const T*>(e.const_data_ptr());
    const C* pm = static_cast<const C*>(m.const_data_ptr());
    const C* pg = static_cast<const C*>(g.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const C k = static_cast<C>(cosh_clamp);
    const Compensation<C> c{static_cast<C>(scalar(scale)), static_cast<C>(max_scale), k, C(1) + exp_(-k),
                            compensating(max_scale, recipe)};
    parallel(e.numel(), kCost, [&](int64_t begin, int64_t end) { run_backward(pg, pe, pm, to, c, begin, end); });
  });
  return out;
}

// The units' freedom 1 - u in the mask's dtype.
template <typename C>
C free_at(const void* used, ScalarType dtype, int64_t i) {
  if (dtype == ScalarType::Bool) return static_cast<const bool*>(used)[i] ? C(0) : C(1);
  return C(1) - static_cast<const C*>(used)[i];
}

Tensor comparable(const Tensor& used, ScalarType dtype) {
  return used.scalar_type() == ScalarType::Bool ? torch::stable::contiguous(used) : to_dtype(used, dtype);
}

Tensor hat_sparsity_cpu(const Tensor& mask, const Tensor& used) {
  const Tensor m = torch::stable::contiguous(mask);
  const Tensor u = comparable(used, compute_dtype(m.scalar_type()));
  const Tensor out = torch::stable::new_empty(m, {}, m.scalar_type());
  dispatch_float(m.scalar_type(), "hat_sparsity", [&]<typename T>() {
    const T* pm = static_cast<const T*>(m.const_data_ptr());
    double taken = 0, count = 0;
    for (int64_t i = 0; i < m.numel(); ++i) {
      const double free = free_at<compute_t<T>>(u.const_data_ptr(), u.scalar_type(), i);
      taken += free * static_cast<double>(pm[i]);
      count += free;
    }
    *static_cast<T*>(out.mutable_data_ptr()) = static_cast<T>(static_cast<compute_t<T>>(count > 0 ? taken / count : 0));
  });
  return out;
}

Tensor hat_sparsity_backward_cpu(const Tensor& grad, const Tensor& mask, const Tensor& used) {
  const Tensor out = torch::stable::new_empty(mask, mask.sizes(), mask.scalar_type());
  const Tensor u = comparable(used, compute_dtype(mask.scalar_type()));
  const double g = scalar(grad);
  dispatch_float(mask.scalar_type(), "hat_sparsity_backward", [&]<typename T>() {
    using C = compute_t<T>;
    const int64_t units = mask.numel();
    double count = 0;
    for (int64_t i = 0; i < units; ++i) count += free_at<C>(u.const_data_ptr(), u.scalar_type(), i);
    const C share = static_cast<C>(count > 0 ? g / count : 0);
    T* to = static_cast<T*>(out.mutable_data_ptr());
    for (int64_t i = 0; i < units; ++i)
      to[i] = static_cast<T>(share * free_at<C>(u.const_data_ptr(), u.scalar_type(), i));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("hat_gate", TORCH_BOX(&hat_gate_cpu));
  m.impl("hat_gate_backward", TORCH_BOX(&hat_gate_backward_cpu));
  m.impl("hat_sparsity", TORCH_BOX(&hat_sparsity_cpu));
  m.impl("hat_sparsity_backward", TORCH_BOX(&hat_sparsity_backward_cpu));
}

}  // namespace maskcl
