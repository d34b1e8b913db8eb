// SGD's step of a whole model on a GPU, and the norm that it may clip by: one launch for the list. Nothing is read on the
// host that is on the device.
//
// A warp takes a segment of a row. What is protected it neither reads nor writes, but for elements that share a vector
// with one that is not: these are written as they were.
#include "steps.cuh"

namespace maskcl::gpu {
namespace {

struct SgdNumbers {
  Number rate;
  double momentum, undampened;
  bool nesterov, first;
};

template <bool Random, typename T, typename S>
__device__ __forceinline__ void sgd_segment(const Moved& e, const Place& place, bool exact, const Gradients& gradients,
                                            const SgdNumbers& n, const Rounding& rounding) {
  using C = compute_t<T>;
  const Unscale<C> unscale = gradients.get<C>();
  const bool scaled = gradients.scaled || gradients.clipped || gradients.maximize;
  const SgdFactors<C> f{static_cast<C>(e.lr * n.rate.get()), static_cast<C>(e.weight_decay), static_cast<C>(e.bound),
                        static_cast<C>(n.momentum), static_cast<C>(n.first ? 1.0 : n.undampened), n.nesterov, {}};
  const uint64_t key = Random ? rounding.key() : 0;
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
      const uint64_t random = Random ? random_bits(key, e.counter(place.row, at + k)) : 0;
      p.at[k] = rounded<Random, T>(param, random, kParamBits);
      m.at[k] = rounded<Random, S>(buffer, random, kFirstBits);
    }
    store(params + at, p);
    if (momenta) store(momenta + at, m);
  });
}

// Three blocks of a multiprocessor where it draws: for four, as ptxas would have it, registers are spilled.
template <typename T, int N, bool Random>
__global__ void __launch_bounds__(kThreads, Random ? 3 : 0)
sgd_kernel(const __grid_constant__ Table<Moved, N> table, bool exact, Gradients gradients, SgdNumbers numbers,
           Rounding rounding) {
  if (!gradients.are_finite()) return;
  const Moved& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  if constexpr (sizeof(T) == 2)
    if (e.wide) return sgd_segment<Random, T, float>(e, place, exact, gradients, numbers, rounding);
  sgd_segment<Random, T, T>(e, place, exact, gradients, numbers, rounding);
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

}  // namespace

// --- ops ------------------------------------------------------------------------------------------------------------

void sgd_update_(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& out_tasks,
                 const Tensors& in_tasks, const std::vector<int64_t>& groups, bool exact, const Numbers& lr,
                 const Numbers& weight_decay, const Numbers& bounds, double momentum, double dampening, bool nesterov,
                 bool maximize, bool first, const MaybeTensor& rate, const MaybeTensor& scale,
                 const MaybeTensor& found_inf, const MaybeTensor& norm, double max_norm, const MaybeTensor& draw,
                 int64_t seed, const std::vector<int64_t>& places) {
  const char* op = "sgd_update_";
  List list(op, params, groups);
  list.check_length("grads", grads.size());
  if (!momenta.empty()) list.check_length("momenta", momenta.size());
  list.check_sides(out_tasks, in_tasks);
  const Pace pace{lr, weight_decay, bounds, draw ? &places : nullptr};
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
  const Rounding rounding{number_of(op, "draw", draw, 0, params[0], kept), seed};
  auto fill = [&](std::vector<Moved>& entries, size_t t) {
    if (params[t].numel() == 0) return;
    Moved e = moved(list, t, grads[t], out_tasks, in_tasks, pace);
    if (!momenta.empty()) {
      e.m = list.beside(e, "momenta", momenta[t], true);
      e.wide = momenta[t].scalar_type() != params[t].scalar_type();
    }
    entries.push_back(e);
  };
  for_dtypes<Moved>(op, params, fill, [&]<typename T>(const std::vector<Moved>& entries) {
    launch_entries<kStepParameters>(op, entries, [&]<int N>(const Table<Moved, N>& table, unsigned blocks) {
      for_rounding<T>(draw.has_value(), [&]<bool Random>() {
        sgd_kernel<T, N, Random><<<blocks, kThreads, 0, stream>>>(table, exact, gradients, numbers, rounding);
      });
    });
  });
  list.finish();
}
Tensor unprotected_norm(const Tensors& grads, const Tensors& out_tasks, const Tensors& in_tasks,
                        const std::vector<int64_t>& groups, bool exact, const MaybeTensor& scale) {
  const char* op = "unprotected_norm";
  MASKCL_CHECK(!grads.empty(), op, ": grads is empty, wanted a tensor");
  List list(op, grads, groups);
  list.check_sides(out_tasks, in_tasks);
  const DeviceGuard guard(grads[0].get_device_index());
  const cudaStream_t stream = current_stream(grads[0]);
  Tensors kept;
  const Number by = number_of(op, "scale", scale, 1, grads[0], kept);
  std::vector<Entry> all(grads.size());
  int64_t count = 0, done = 0;
  for (size_t t = 0; t < grads.size(); ++t) {
    all[t] = list.entry(t);
    list.tasks(all[t], out_tasks, in_tasks);
    lay_flat(all[t], list.element_size(t));
    if (grads[t].numel() != 0) count += all[t].blocks();
  }
  const Tensor parts = fresh(grads[0], {std::max<int64_t>(count, 1)}, ScalarType::Double);
  auto fill = [&](std::vector<Entry>& entries, size_t t) {
    if (grads[t].numel() != 0) entries.push_back(all[t]);
  };
  for_dtypes<Entry>(op, grads, fill, [&]<typename T>(const std::vector<Entry>& entries) {
    launch_entries<kStepParameters>(op, entries, [&]<int N>(const Table<Entry, N>& table, unsigned blocks) {
      square_kernel<T, N><<<blocks, kThreads, 0, stream>>>(table, exact, by, data<double>(parts) + done);
      done += blocks;
    });
  });
  const Tensor norm = fresh(grads[0], {}, compute_dtype(grads[0].scalar_type()));
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
  m.impl("unprotected_norm", TORCH_BOX(&maskcl::gpu::unprotected_norm));
}
