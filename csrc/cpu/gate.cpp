// Gates of all units of a network: a few thousand elements, one pass.

#include <type_traits>

#include "gates.h"

namespace maskcl {
namespace {

constexpr int64_t kCost = 4;  // a gate costs about as much as so many elements of a plain pass

// What a gate's gradient needs besides its unit's numbers.
template <typename C>
struct Compensation {
  C scale, max_scale, cosh_clamp, tail;
  Compensating how;
};

template <typename T, typename C>
MASKCL_INLINE void forward_units(const T* e, C* m, C s, C floor, int64_t begin, int64_t end) {
  MASKCL_VECTORIZE
  for (int64_t i = begin; i < end; ++i) m[i] = hat_gate(static_cast<C>(e[i]), s, floor);
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
MASKCL_CLONES void run_forward(const float* e, float* m, float s, float floor, int64_t begin, int64_t end) {
  forward_units(e, m, s, floor, begin, end);
}
MASKCL_CLONES void run_backward(const float* g, const float* e, const float* m, float* out, Compensation<float> c,
                                int64_t begin, int64_t end) {
  backward_units(g, e, m, out, c, begin, end);
}
template <typename T, typename C>
void run_forward(const T* e, C* m, C s, C floor, int64_t begin, int64_t end) {
  forward_units(e, m, s, floor, begin, end);
}
template <typename T, typename C>
void run_backward(const C* g, const T* e, const C* m, T* out, Compensation<C> c, int64_t begin, int64_t end) {
  backward_units(g, e, m, out, c, begin, end);
}

double scalar(const char* op, const char* name, const Tensor& x) {
  check_one(op, name, x);
  double value = 0;
  dispatch_float(x.scalar_type(), op, [&]<typename T>() {
    value = static_cast<double>(*static_cast<const T*>(x.const_data_ptr()));
  });
  return value;
}

Tensor hat_gate_cpu(const Tensor& embedding, const Tensor& scale, double floor) {
  const Tensor e = as_contiguous(embedding);
  const Tensor m = fresh(e, e.sizes(), compute_dtype(e.scalar_type()));
  dispatch_float(e.scalar_type(), "hat_gate", [&]<typename T>() {
    using C = compute_t<T>;
    const T* from = static_cast<const T*>(e.const_data_ptr());
    C* to = static_cast<C*>(m.mutable_data_ptr());
    const C s = static_cast<C>(scalar("hat_gate", "scale", scale)), least = static_cast<C>(floor);
    parallel(e.numel(), kCost, [&](int64_t begin, int64_t end) { run_forward(from, to, s, least, begin, end); });
  });
  return m;
}

Tensor hat_gate_backward_cpu(const Tensor& grad, const Tensor& embedding, const Tensor& mask, const Tensor& scale,
                             double max_scale, double cosh_clamp, bool recipe) {
  const char* op = "hat_gate_backward";
  const Tensor e = as_contiguous(embedding);
  check_units(op, "grad", grad, e.numel());
  check_units(op, "mask", mask, e.numel());
  const ScalarType dtype = compute_dtype(e.scalar_type());
  const Tensor m = to_dtype(mask, dtype), g = to_dtype(grad, dtype), out = fresh_like(e);
  dispatch_float(e.scalar_type(), op, [&]<typename T>() {
    using C = compute_t<T>;
    const T* pe = static_cast<const T*>(e.const_data_ptr());
    const C* pm = static_cast<const C*>(m.const_data_ptr());
    const C* pg = static_cast<const C*>(g.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const C k = static_cast<C>(cosh_clamp);
    const Compensation<C> c{static_cast<C>(scalar(op, "scale", scale)), static_cast<C>(max_scale), k, C(1) + exp_(-k),
                            compensating(max_scale, recipe)};
    parallel(e.numel(), kCost, [&](int64_t begin, int64_t end) { run_backward(pg, pe, pm, to, c, begin, end); });
  });
  return out;
}

// The units' freedom 1 - u.
template <typename C>
MASKCL_INLINE C freedom(bool used) {
  return used ? C(0) : C(1);
}
template <typename C>
MASKCL_INLINE C freedom(C used) {
  return C(1) - used;
}

// Adds up m (1 - u) and (1 - u); sums in float64.
template <typename T, typename C, typename U>
MASKCL_INLINE void sum_units(const T* m, const U* used, int64_t units, double* taken, double* free) {
  double sum_taken = 0, sum_free = 0;
  MASKCL_SUM(sum_taken, sum_free)
  for (int64_t i = 0; i < units; ++i) {
    const C f = freedom<C>(used[i]);
    sum_taken += static_cast<double>(f * static_cast<C>(m[i]));
    sum_free += static_cast<double>(f);
  }
  *taken = sum_taken;
  *free = sum_free;
}

template <typename T, typename C, typename U>
MASKCL_INLINE void share_units(const U* used, C share, T* out, int64_t units) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < units; ++i) out[i] = static_cast<T>(share * freedom<C>(used[i]));
}

// A network's masks are float32 and its used units bool; the other dtypes work, and need no clones.
MASKCL_CLONES void run_sum(const float* m, const bool* used, int64_t units, double* taken, double* free) {
  sum_units<float, float>(m, used, units, taken, free);
}
MASKCL_CLONES void run_share(const bool* used, float share, float* out, int64_t units) {
  share_units(used, share, out, units);
}
template <typename T, typename U>
void run_sum(const T* m, const U* used, int64_t units, double* taken, double* free) {
  sum_units<T, compute_t<T>>(m, used, units, taken, free);
}
template <typename T, typename C, typename U>
void run_share(const U* used, C share, T* out, int64_t units) {
  share_units(used, share, out, units);
}

// Runs body(pointer) for `used` as bool, or as the mask's arithmetic type C.
template <typename C, typename F>
void dispatch_used(const Tensor& used, ScalarType mask_dtype, F&& body) {
  if (used.scalar_type() == ScalarType::Bool) {
    const Tensor u = as_contiguous(used);
    body(static_cast<const bool*>(u.const_data_ptr()));
  } else {
    const Tensor u = to_dtype(used, compute_dtype(mask_dtype));
    body(static_cast<const C*>(u.const_data_ptr()));
  }
}

Tensor hat_sparsity_cpu(const Tensor& mask, const Tensor& used) {
  check_units("hat_sparsity", "used", used, mask.numel());
  const Tensor m = as_contiguous(mask);
  const Tensor out = fresh(m, {}, m.scalar_type());
  dispatch_float(m.scalar_type(), "hat_sparsity", [&]<typename T>() {
    using C = compute_t<T>;
    double taken = 0, free = 0;
    dispatch_used<C>(used, m.scalar_type(), [&](const auto* u) {
      run_sum(static_cast<const T*>(m.const_data_ptr()), u, m.numel(), &taken, &free);
    });
    *static_cast<T*>(out.mutable_data_ptr()) = static_cast<T>(static_cast<C>(free > 0 ? taken / free : 0));
  });
  return out;
}

Tensor hat_sparsity_backward_cpu(const Tensor& grad, const Tensor& mask, const Tensor& used) {
  const char* op = "hat_sparsity_backward";
  check_units(op, "used", used, mask.numel());
  const Tensor m = as_contiguous(mask);
  const Tensor out = fresh_like(m);
  const double g = scalar(op, "grad", grad);
  dispatch_float(m.scalar_type(), "hat_sparsity_backward", [&]<typename T>() {
    using C = compute_t<T>;
    dispatch_used<C>(used, m.scalar_type(), [&](const auto* u) {
      double taken = 0, free = 0;
      run_sum(static_cast<const T*>(m.const_data_ptr()), u, m.numel(), &taken, &free);
      run_share(u, static_cast<C>(free > 0 ? g / free : 0), static_cast<T*>(out.mutable_data_ptr()), m.numel());
    });
  });
  return out;
}

// --- a whole network's gates, with the term of its loss --------------------------------------------------------------

template <typename C>
MASKCL_INLINE double dot_units(const C* m, const C* share, int64_t units) {
  double sum = 0;
  MASKCL_SUM(sum)
  for (int64_t i = 0; i < units; ++i) sum += static_cast<double>(m[i]) * static_cast<double>(share[i]);
  return sum;
}
MASKCL_CLONES double run_dot(const float* m, const float* share, int64_t units) { return dot_units(m, share, units); }
double run_dot(const double* m, const double* share, int64_t units) { return dot_units(m, share, units); }

}  // namespace

std::tuple<Tensor, Tensor> hat_gates_cpu(const Tensor& embedding, const Tensor& scale, const Tensor& share,
                                         double floor, double weight) {
  check_units("hat_gates", "share", share, embedding.numel());
  const Tensor m = hat_gate_cpu(embedding, scale, floor);
  const Tensor s = to_dtype(share, m.scalar_type()), term = fresh(m, {});
  dispatch_float(m.scalar_type(), "hat_gates", [&]<typename C>() {
    if constexpr (std::is_same_v<C, compute_t<C>>)
      *data<C>(term) = static_cast<C>(weight * run_dot(const_data<C>(m), const_data<C>(s), m.numel()));
  });
  return {m, term};
}

namespace {

// The mask's gradient: of its parts, one after the other, and of the term.
template <typename C>
std::vector<C> gathered(const std::vector<Tensor>& grads, const std::vector<int64_t>& sizes,
                        const Tensor& share, C term) {
  const C* from = const_data<C>(share);
  std::vector<C> sums(share.numel());
  int64_t at = 0;
  for (size_t part = 0; part < sizes.size(); at += sizes[part++]) {
    const bool known = grads[part].numel() > 0;
    const Tensor g = known ? to_dtype(grads[part], share.scalar_type()) : share;
    const C* p = const_data<C>(g);
    for (int64_t i = 0; i < sizes[part]; ++i) sums[at + i] = (known ? p[i] : C(0)) + term * from[at + i];
  }
  return sums;
}

}  // namespace

Tensor hat_gates_backward_cpu(std::vector<Tensor> grads, const Tensor& grad_term, const Tensor& embedding,
                              const Tensor& scale, const Tensor& share, std::vector<int64_t> sizes, double weight,
                              double max_scale, double cosh_clamp, bool recipe) {
  const char* op = "hat_gates_backward";
  const int64_t units = embedding.numel();
  check_parts(op, grads, sizes, units);
  check_units(op, "share", share, units);
  const ScalarType dtype = compute_dtype(embedding.scalar_type());
  const Tensor s = to_dtype(share, dtype), sums = empty_vector(s, units, dtype);
  const double term = grad_term.numel() ? weight * scalar(op, "grad_term", grad_term) : 0.0;
  dispatch_float(dtype, op, [&]<typename C>() {
    if constexpr (std::is_same_v<C, compute_t<C>>) {
      const std::vector<C> found = gathered<C>(grads, sizes, s, static_cast<C>(term));
      std::copy(found.begin(), found.end(), data<C>(sums));
    }
  });
  const Tensor mask = recipe ? hat_gate_cpu(embedding, scale, 0.0) : sums;  // which no other gradient is made of
  return hat_gate_backward_cpu(sums, embedding, mask, scale, max_scale, cosh_clamp, recipe);
}

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("hat_gate", TORCH_BOX(&hat_gate_cpu));
  m.impl("hat_gate_backward", TORCH_BOX(&hat_gate_backward_cpu));
  m.impl("hat_gates", TORCH_BOX(&hat_gates_cpu));
  m.impl("hat_gates_backward", TORCH_BOX(&hat_gates_backward_cpu));
  m.impl("hat_sparsity", TORCH_BOX(&hat_sparsity_cpu));
  m.impl("hat_sparsity_backward", TORCH_BOX(&hat_sparsity_backward_cpu));
}

}  // namespace maskcl
