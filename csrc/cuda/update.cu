// One optimizer step of a whole model on a GPU: one launch for the list, for Adam one more that counts the steps and
// works out what depends on them. Nothing is read on the host that is on the device.
//
// A warp takes a segment of a row. What is protected it neither reads nor writes, but for elements that share a vector
// with one that is not: these are written as they were.
#include <cmath>

#include "../steps.h"
#include "unit_rows.cuh"

namespace maskcl::gpu {
namespace {

// A 0-d tensor, read by the kernel where it is on the device.
struct Number {
  const void* on_device;
  double on_host;
  bool is_double;

  __device__ double get() const {
    if (on_device == nullptr) return on_host;
    return is_double ? *static_cast<const double*>(on_device) : *static_cast<const float*>(on_device);
  }
};

// What is done to all gradients, and whether anything is done at all.
struct Gradients {
  Number scale, norm, found_inf;
  double max_norm;
  bool scaled, clipped, maximize;

  __device__ bool are_finite() const { return found_inf.get() == 0; }
  bool used() const { return scaled || clipped || maximize; }
  template <typename C>
  __device__ Unscale<C> get() const {
    const C factor = clipped ? clip_factor(static_cast<C>(norm.get()), static_cast<C>(max_norm)) : C(1);
    return {static_cast<C>(scale.get()), maximize ? -factor : factor, {}};
  }
};

// One parameter. m and v are its state: of float32 where `wide`, else of its dtype.
struct Moved : Entry {
  const void* grad;
  void *m, *v;
  const double* known;  // Adam: step size, root and kept share, where they come from the device
  double lr, weight_decay, bound;
  double step_size, root, kept;
  bool wide;
};

struct SgdNumbers {
  Number rate;
  double momentum, undampened;
  bool nesterov, first;
};

struct AdamNumbers {
  double beta1, beta2, eps;
  bool decoupled;
};

constexpr size_t kStepParameters = sizeof(Gradients) + sizeof(SgdNumbers) + 64;

// --- device ---------------------------------------------------------------------------------------------------------

// Calls body<V>(position, hits) for what is not wholly protected of this warp's segment, or for `all` of it; bit k of
// hits: element k is protected.
template <typename T, typename F>
__device__ __forceinline__ void for_free(const Entry& e, const Place& place, bool exact, bool all, F&& body) {
  const int64_t* out = static_cast<const int64_t*>(e.out) + place.row * e.out_step;
  const int64_t* in = static_cast<const int64_t*>(e.in);
  const bool tasked = any_task(out, e.words);
  auto visit = [&]<int V>(int64_t position) {
    unsigned hits = 0;
    if (tasked) {
      int64_t column[V];
      columns_of<V>(e, position, column);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const int64_t* unit = in + (place.first_column + column[k]) * e.in_step;
        hits |= static_cast<unsigned>(meets(out, unit, e.words, exact)) << k;
      }
      if (hits == (1u << V) - 1 && !all) return;
    }
    body.template operator()<V>(position, hits);
  };
  if (e.vectorizes)
    for_segment<vector_width<T>>(e, place.segment, visit);
  else
    for_segment<1>(e, place.segment, visit);
}

template <typename T, typename S>
__device__ __forceinline__ void sgd_segment(const Moved& e, const Place& place, bool exact, const Gradients& gradients,
                                            const SgdNumbers& n) {
  using C = compute_t<T>;
  const Unscale<C> unscale = gradients.get<C>();
  const bool scaled = gradients.scaled || gradients.clipped || gradients.maximize;
  const SgdFactors<C> f{static_cast<C>(e.lr * n.rate.get()), static_cast<C>(e.weight_decay), static_cast<C>(e.bound),
                        static_cast<C>(n.momentum), static_cast<C>(n.first ? 1.0 : n.undampened), n.nesterov, {}};
  const int64_t base = place.row * e.width();
  T* params = static_cast<T*>(e.data) + base;
  const T* grads = static_cast<const T*>(e.grad) + base;
  S* momenta = e.m ? static_cast<S*>(e.m) + base : nullptr;
  // Buffers that nobody has written become 0 where their parameters are protected.
  for_free<T>(e, place, exact, momenta && n.first, [&]<int V>(int64_t at, unsigned hits) {
    Vector<T, V> p = load<V>(params + at);
    const Vector<T, V> g = load<V>(grads + at);
    Vector<S, V> m{};
    if (momenta && !n.first) m = load<V>(momenta + at);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (hits >> k & 1) continue;
      C grad = static_cast<C>(g.at[k]), param = static_cast<C>(p.at[k]), buffer = static_cast<C>(m.at[k]);
      if (scaled) grad = unscale(grad);
      if (momenta)
        sgd_step<true>(f, grad, param, buffer);
      else
        sgd_step<false>(f, grad, param, buffer);
      p.at[k] = static_cast<T>(param);
      m.at[k] = static_cast<S>(buffer);
    }
    store(params + at, p);
    if (momenta) store(momenta + at, m);
  });
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) sgd_kernel(const __grid_constant__ Table<Moved, N> table, bool exact,
                                                       Gradients gradients, SgdNumbers numbers) {
  if (!gradients.are_finite()) return;
  const Moved& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  if constexpr (sizeof(T) == 2)
    if (e.wide) return sgd_segment<T, float>(e, place, exact, gradients, numbers);
  sgd_segment<T, T>(e, place, exact, gradients, numbers);
}

template <typename T, typename S>
__device__ __forceinline__ void adam_segment(const Moved& e, const Place& place, bool exact, const Gradients& gradients,
                                             const AdamNumbers& n) {
  using C = compute_t<T>;
  const Unscale<C> unscale = gradients.get<C>();
  const bool scaled = gradients.scaled || gradients.clipped || gradients.maximize;
  const AdamFactors<C> f{static_cast<C>(e.known ? e.known[0] : e.step_size),
                         static_cast<C>(e.known ? e.known[1] : e.root),
                         static_cast<C>(e.known ? e.known[2] : e.kept),
                         static_cast<C>(n.decoupled ? 0.0 : e.weight_decay),
                         static_cast<C>(e.bound),
                         static_cast<C>(n.beta2),
                         static_cast<C>(n.eps),
                         static_cast<C>(1 - n.beta1),
                         static_cast<C>(1 - n.beta2),
                         {}};
  const int64_t base = place.row * e.width();
  T* params = static_cast<T*>(e.data) + base;
  const T* grads = static_cast<const T*>(e.grad) + base;
  S *firsts = static_cast<S*>(e.m) + base, *seconds = static_cast<S*>(e.v) + base;
  for_free<T>(e, place, exact, false, [&]<int V>(int64_t at, unsigned hits) {
    Vector<T, V> p = load<V>(params + at);
    const Vector<T, V> g = load<V>(grads + at);
    Vector<S, V> m = load<V>(firsts + at), v = load<V>(seconds + at);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (hits >> k & 1) continue;
      C grad = static_cast<C>(g.at[k]), param = static_cast<C>(p.at[k]);
      C first = static_cast<C>(m.at[k]), second = static_cast<C>(v.at[k]);
      if (scaled) grad = unscale(grad);
      adam_step(f, grad, param, first, second);
      p.at[k] = static_cast<T>(param);
      m.at[k] = static_cast<S>(first);
      v.at[k] = static_cast<S>(second);
    }
    store(params + at, p);
    store(firsts + at, m);
    store(seconds + at, v);
  });
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) adam_kernel(const __grid_constant__ Table<Moved, N> table, bool exact,
                                                        Gradients gradients, AdamNumbers numbers) {
  if (!gradients.are_finite()) return;
  const Moved& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  if constexpr (sizeof(T) == 2)
    if (e.wide) return adam_segment<T, float>(e, place, exact, gradients, numbers);
  adam_segment<T, T>(e, place, exact, gradients, numbers);
}

// A parameter's count of steps, or `counted` where that is on the host, and where what follows from it goes.
struct Counted {
  void* step;
  double* known;
  double counted, lr, weight_decay;
  int64_t first_block;
  bool is_double;

  int64_t blocks() const { return 1; }
};

// One thread a parameter: many blocks of one are as quick as few of many, and there are few.
template <int N>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Table<Counted, N> table, Number rate,
                                                         Number found_inf, AdamNumbers n) {
  if (threadIdx.x != 0 || found_inf.get() != 0) return;
  const Counted& e = entry_of_block(table);
  double step = e.counted;
  if (e.step && e.is_double) step = *static_cast<double*>(e.step) += 1;
  if (e.step && !e.is_double) step = *static_cast<float*>(e.step) += 1;
  const double lr = e.lr * rate.get();
  e.known[0] = lr / (1 - ::pow(n.beta1, step));
  e.known[1] = ::sqrt(1 - ::pow(n.beta2, step));
  e.known[2] = n.decoupled ? 1 - lr * e.weight_decay : 1;
}

// One block's sum of squares goes to parts[its number].
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
square_kernel(const __grid_constant__ Table<Entry, N> table, bool exact, Number scale, double* parts) {
  using C = compute_t<T>;
  const Entry& e = entry_of_block(table);
  const Place place(e);
  double sum = 0;
  if (place.row < e.rows) {
    const C by = static_cast<C>(scale.get());
    const T* grads = static_cast<const T*>(e.data) + place.row * e.width();
    for_free<T>(e, place, exact, false, [&]<int V>(int64_t at, unsigned hits) {
      const Vector<T, V> g = load<V>(grads + at);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const double x = hits >> k & 1 ? C(0) : static_cast<C>(g.at[k]) / by;
        sum += x * x;
      }
    });
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <typename C>
__global__ void __launch_bounds__(kThreads) root_kernel(const double* parts, int64_t count, C* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = static_cast<C>(::sqrt(sum));
}

// --- host -----------------------------------------------------------------------------------------------------------

using Tensors = std::vector<Tensor>;
using Numbers = std::vector<double>;
using MaybeTensor = std::optional<Tensor>;

// `kept` holds a converted copy until the launch.
Number number_of(const char* op, const char* name, const MaybeTensor& value, double otherwise, const Tensor& like,
                 Tensors& kept) {
  if (!value) return {nullptr, otherwise, true};
  const Tensor& given = *value;
  check_one(op, name, given);
  const bool is_double = given.scalar_type() == ScalarType::Double;
  if (given.is_cuda()) check_cuda(op, name, given, like);
  kept.push_back(to_dtype(given, is_double ? ScalarType::Double : ScalarType::Float));
  const void* data = kept.back().const_data_ptr();
  if (given.is_cuda()) return {data, 0, is_double};
  return {nullptr, is_double ? *static_cast<const double*>(data) : *static_cast<const float*>(data), is_double};
}

Gradients gradients_of(const char* op, bool maximize, const MaybeTensor& scale, const MaybeTensor& found_inf,
                       const MaybeTensor& norm, double max_norm, const Tensor& like, Tensors& kept) {
  return {number_of(op, "scale", scale, 1, like, kept),
          number_of(op, "norm", norm, 0, like, kept),
          number_of(op, "found_inf", found_inf, 0, like, kept),
          max_norm,
          scale.has_value(),
          norm.has_value(),
          maximize};
}

// The numbers of each parameter, all of one length.
struct Pace {
  const Numbers &lr, &weight_decay, &bounds;

  void check(const List& list) const {
    list.check_length("lr", lr.size());
    list.check_length("weight_decay", weight_decay.size());
    list.check_length("bounds", bounds.size());
  }
};

void check_state(const char* op, const char* name, size_t t, const Tensor& state, const Tensor& param) {
  check_shape(op, entry_name(name, t).c_str(), state, param, "the parameter");
  const ScalarType found = state.scalar_type(), wanted = param.scalar_type();
  MASKCL_CHECK(found == wanted || found == compute_dtype(wanted), op, ": ", name, "[", t, "] is ",
               torch::headeronly::toString(found), ", wanted ", torch::headeronly::toString(wanted), " or ",
               torch::headeronly::toString(compute_dtype(wanted)));
}

// A vector's rows are its units: one row of them all, for which a warp is not spent on each.
template <typename E>
void lay_flat(E& e, size_t element_size) {
  if (e.width() != 1 || e.groups != 1) return;
  std::swap(e.rows, e.columns);
  std::swap(e.out, e.in);
  std::swap(e.out_step, e.in_step);
  e.vectorizes = e.vectorizes || (aligned16(e.data) && e.columns % (16 / static_cast<int64_t>(element_size)) == 0);
}

Moved moved(List& list, size_t t, const Tensor& grad, const Tensor& out, const Tensor& in, const Pace& pace) {
  Moved e{};
  static_cast<Entry&>(e) = list.entry(t);
  list.tasks(e, out, in);
  lay_flat(e, list.element_size(t));
  e.grad = list.beside(e, "grads", grad, false);
  e.lr = pace.lr[t];
  e.weight_decay = pace.weight_decay[t];
  e.bound = pace.bounds[t];
  return e;
}

}  // namespace

// --- ops ------------------------------------------------------------------------------------------------------------

void sgd_update_(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& out_tasks,
                 const Tensors& in_tasks, const std::vector<int64_t>& groups, bool exact, const Numbers& lr,
                 const Numbers& weight_decay, const Numbers& bounds, double momentum, double dampening, bool nesterov,
                 bool maximize, bool first, const MaybeTensor& rate, const MaybeTensor& scale,
                 const MaybeTensor& found_inf, const MaybeTensor& norm, double max_norm) {
  const char* op = "sgd_update_";
  List list(op, params, groups);
  list.check_length("grads", grads.size());
  if (!momenta.empty()) list.check_length("momenta", momenta.size());
  list.check_length("out_tasks", out_tasks.size());
  list.check_length("in_tasks", in_tasks.size());
  const Pace pace{lr, weight_decay, bounds};
  pace.check(list);
  if (params.empty()) return;
  const DeviceGuard guard(params[0].get_device_index());
  for (size_t t = 0; t < params.size(); ++t) {
    check_like_param(op, "grads", t, grads[t], params[t]);
    if (!momenta.empty()) check_state(op, "momenta", t, momenta[t], params[t]);
  }
  const cudaStream_t stream = current_stream(params[0]);
  Tensors kept;
  const Gradients gradients = gradients_of(op, maximize, scale, found_inf, norm, max_norm, params[0], kept);
  const SgdNumbers numbers{number_of(op, "rate", rate, 1, params[0], kept), momentum, 1 - dampening, nesterov, first};
  auto fill = [&](std::vector<Moved>& entries, size_t t) {
    if (params[t].numel() == 0) return;
    Moved e = moved(list, t, grads[t], out_tasks[t], in_tasks[t], pace);
    if (!momenta.empty()) {
      e.m = list.beside(e, "momenta", momenta[t], true);
      e.wide = momenta[t].scalar_type() != params[t].scalar_type();
    }
    entries.push_back(e);
  };
  for_dtypes<Moved>(op, params, fill, [&]<typename T>(const std::vector<Moved>& entries) {
    launch_entries<kStepParameters>(op, entries, [&]<int N>(const Table<Moved, N>& table, unsigned blocks) {
      sgd_kernel<T, N><<<blocks, kThreads, 0, stream>>>(table, exact, gradients, numbers);
    });
  });
  list.finish();
}

namespace {

// Adam's entries, and those of the kernel that counts their steps.
class Counts {
 public:
  Counts(const char* op, const Tensors& params, const Tensors& steps, const Number& rate, const Number& found_inf,
         const AdamNumbers& numbers)
      : steps_(steps), rate_(rate), found_inf_(found_inf), numbers_(numbers) {
    bool all_known = rate.on_device == nullptr;
    for (size_t t = 0; t < steps.size(); ++t) {
      check_one(op, entry_name("steps", t).c_str(), steps[t]);
      const ScalarType found = steps[t].scalar_type();
      MASKCL_CHECK(found == ScalarType::Float || found == ScalarType::Double, op, ": steps[", t, "] is ",
                   torch::headeronly::toString(found), ", wanted Float or Double");
      if (steps[t].is_cuda()) {
        check_cuda(op, "steps", steps[t], params[0]);
        all_known = false;
      } else {
        MASKCL_CHECK(found_inf.on_device == nullptr, op, ": steps[", t,
                     "] is on the host, wanted found_inf's device: whether it counts is known there");
      }
    }
    if (!all_known)
      scratch_ = torch::stable::new_empty(params[0], {static_cast<int64_t>(3 * steps.size())}, ScalarType::Double);
  }

  // Counts a step of parameter t, here or by launch().
  void count(Moved& e, size_t t) {
    Counted c{};
    const Tensor& step = steps_[t];
    c.is_double = step.scalar_type() == ScalarType::Double;
    c.lr = e.lr;
    c.weight_decay = e.weight_decay;
    if (step.is_cuda())
      c.step = step.mutable_data_ptr();
    else
      c.counted = c.is_double ? *data<double>(step) += 1 : *data<float>(step) += 1;
    if (scratch_) {
      e.known = c.known = data<double>(*scratch_) + 3 * t;
      entries_.push_back(c);
      return;
    }
    const double lr = e.lr * rate_.on_host;
    e.step_size = lr / (1 - std::pow(numbers_.beta1, c.counted));
    e.root = std::sqrt(1 - std::pow(numbers_.beta2, c.counted));
    e.kept = numbers_.decoupled ? 1 - lr * e.weight_decay : 1;
  }

  void launch(const char* op, cudaStream_t stream) const {
    launch_entries<kStepParameters>(op, entries_, [&]<int N>(const Table<Counted, N>& table, unsigned blocks) {
      count_kernel<N><<<blocks, kThreads, 0, stream>>>(table, rate_, found_inf_, numbers_);
    });
  }

 private:
  const Tensors& steps_;
  Number rate_, found_inf_;
  AdamNumbers numbers_;
  std::optional<Tensor> scratch_;
  std::vector<Counted> entries_;
};

}  // namespace

void adam_update_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                  const Tensors& steps, const Tensors& out_tasks, const Tensors& in_tasks,
                  const std::vector<int64_t>& groups, bool exact, const Numbers& lr, const Numbers& weight_decay,
                  const Numbers& bounds, double beta1, double beta2, double eps, bool decoupled, bool maximize,
                  const MaybeTensor& rate, const MaybeTensor& scale, const MaybeTensor& found_inf,
                  const MaybeTensor& norm, double max_norm) {
  const char* op = "adam_update_";
  List list(op, params, groups);
  list.check_length("grads", grads.size());
  list.check_length("exp_avgs", exp_avgs.size());
  list.check_length("exp_avg_sqs", exp_avg_sqs.size());
  list.check_length("steps", steps.size());
  list.check_length("out_tasks", out_tasks.size());
  list.check_length("in_tasks", in_tasks.size());
  const Pace pace{lr, weight_decay, bounds};
  pace.check(list);
  if (params.empty()) return;
  const DeviceGuard guard(params[0].get_device_index());
  for (size_t t = 0; t < params.size(); ++t) {
    check_like_param(op, "grads", t, grads[t], params[t]);
    check_state(op, "exp_avgs", t, exp_avgs[t], params[t]);
    check_state(op, "exp_avg_sqs", t, exp_avg_sqs[t], params[t]);
    check_dtype(op, entry_name("exp_avg_sqs", t).c_str(), exp_avg_sqs[t], exp_avgs[t].scalar_type());
  }
  const cudaStream_t stream = current_stream(params[0]);
  Tensors kept;
  const Gradients gradients = gradients_of(op, maximize, scale, found_inf, norm, max_norm, params[0], kept);
  const AdamNumbers numbers{beta1, beta2, eps, decoupled};
  const Number factor = number_of(op, "rate", rate, 1, params[0], kept);
  Counts counts(op, params, steps, factor, gradients.found_inf, numbers);
  if (gradients.found_inf.on_device == nullptr && gradients.found_inf.on_host != 0) return;
  std::vector<Moved> moves(params.size());
  for (size_t t = 0; t < params.size(); ++t) {
    Moved& e = moves[t] = moved(list, t, grads[t], out_tasks[t], in_tasks[t], pace);
    e.m = list.beside(e, "exp_avgs", exp_avgs[t], true);
    e.v = list.beside(e, "exp_avg_sqs", exp_avg_sqs[t], true);
    e.wide = exp_avgs[t].scalar_type() != params[t].scalar_type();
  }
  for (size_t t = 0; t < params.size(); ++t) counts.count(moves[t], t);
  counts.launch(op, stream);
  auto fill = [&](std::vector<Moved>& entries, size_t t) {
    if (params[t].numel() != 0) entries.push_back(moves[t]);
  };
  for_dtypes<Moved>(op, params, fill, [&]<typename T>(const std::vector<Moved>& entries) {
    launch_entries<kStepParameters>(op, entries, [&]<int N>(const Table<Moved, N>& table, unsigned blocks) {
      adam_kernel<T, N><<<blocks, kThreads, 0, stream>>>(table, exact, gradients, numbers);
    });
  });
  list.finish();
}

Tensor unprotected_norm(const Tensors& grads, const Tensors& out_tasks, const Tensors& in_tasks,
                        const std::vector<int64_t>& groups, bool exact, const MaybeTensor& scale) {
  const char* op = "unprotected_norm";
  MASKCL_CHECK(!grads.empty(), op, ": grads is empty, wanted a tensor");
  List list(op, grads, groups);
  list.check_length("out_tasks", out_tasks.size());
  list.check_length("in_tasks", in_tasks.size());
  const DeviceGuard guard(grads[0].get_device_index());
  const cudaStream_t stream = current_stream(grads[0]);
  Tensors kept;
  const Number by = number_of(op, "scale", scale, 1, grads[0], kept);
  std::vector<Entry> all(grads.size());
  int64_t count = 0, done = 0;
  for (size_t t = 0; t < grads.size(); ++t) {
    all[t] = list.entry(t);
    list.tasks(all[t], out_tasks[t], in_tasks[t]);
    lay_flat(all[t], list.element_size(t));
    if (grads[t].numel() != 0) count += all[t].blocks();
  }
  const Tensor parts = torch::stable::new_empty(grads[0], {std::max<int64_t>(count, 1)}, ScalarType::Double);
  auto fill = [&](std::vector<Entry>& entries, size_t t) {
    if (grads[t].numel() != 0) entries.push_back(all[t]);
  };
  for_dtypes<Entry>(op, grads, fill, [&]<typename T>(const std::vector<Entry>& entries) {
    launch_entries<kStepParameters>(op, entries, [&]<int N>(const Table<Entry, N>& table, unsigned blocks) {
      square_kernel<T, N><<<blocks, kThreads, 0, stream>>>(table, exact, by, data<double>(parts) + done);
      done += blocks;
    });
  });
  const Tensor norm = torch::stable::new_empty(grads[0], {}, compute_dtype(grads[0].scalar_type()));
  if (norm.scalar_type() == ScalarType::Double)
    root_kernel<double><<<1, kThreads, 0, stream>>>(data<double>(parts), count, data<double>(norm));
  else
    root_kernel<float><<<1, kThreads, 0, stream>>>(data<double>(parts), count, data<float>(norm));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return norm;
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("sgd_update_", TORCH_BOX(&maskcl::gpu::sgd_update_));
  m.impl("adam_update_", TORCH_BOX(&maskcl::gpu::adam_update_));
  m.impl("unprotected_norm", TORCH_BOX(&maskcl::gpu::unprotected_norm));
}
