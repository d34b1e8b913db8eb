// Importances and their penalty on a GPU: one launch for the list, 16 bytes at a time. Sums are taken by block, then
// over the blocks in order, in float64; blocks are cut by sizes alone, so that they come out alike on every GPU.
// linear_importance_ is in linear_importance.cu.
#include "../lists.h"
#include "importance.cuh"
#include "table.cuh"

namespace maskcl::gpu {
namespace {

constexpr int64_t kSpan = 4096;  // elements of a tensor that a block takes

// Calls body<V>(at) for every V elements of [begin, end), and body<1>(at) for each of those left over.
template <int V, typename F>
__device__ __forceinline__ void for_range(int64_t begin, int64_t end, F&& body) {
  const int64_t whole = begin + (end - begin) / V * V;
  for (int64_t at = begin + threadIdx.x * V; at < whole; at += kThreads * V) body.template operator()<V>(at);
  if constexpr (V > 1)
    if (whole + threadIdx.x < end) body.template operator()<1>(whole + threadIdx.x);
}

// --- importances ----------------------------------------------------------------------------------------------------

// One tensor: an importance, and a gradient of `samples` times its size.
struct Accumulated {
  void* importance;
  const void* grad;
  int64_t count, samples;
  int64_t step;  // elements from one sample to the next
  int64_t first_block;
  int32_t groups;  // a block's threads in so many groups share the samples of `span` elements
  int32_t span;
  bool vectorizes;

  int64_t blocks() const { return ceil_div(count, span); }
};

// Every groups-th sample's sizes, from sample `first` on.
template <bool Square, typename T, int V, typename C>
__device__ __forceinline__ void add_sizes(const Accumulated& e, int64_t at, int first, C (&total)[V]) {
  const T* grad = static_cast<const T*>(e.grad) + at;
#pragma unroll 4
  for (int64_t n = first; n < e.samples; n += e.groups) {
    const Vector<T, V> g = load<V>(grad + n * e.step);
#pragma unroll
    for (int k = 0; k < V; ++k) total[k] += importance_size<Square>(static_cast<C>(g.at[k]));
  }
}

template <int V, typename C>
__device__ __forceinline__ void update(C* importance, const C (&total)[V], C weight, C decay) {
  Vector<C, V> omega = load<V>(importance);
#pragma unroll
  for (int k = 0; k < V; ++k) omega.at[k] = decay * omega.at[k] + weight * total[k];
  store(importance, omega);
}

template <bool Square, typename T, int V>
__device__ __forceinline__ void accumulate(const Accumulated& e, compute_t<T> weight, compute_t<T> decay) {
  using C = compute_t<T>;
  C* importance = static_cast<C*>(e.importance);
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - e.first_block) * e.span;
  const int64_t end = begin + e.span < e.count ? begin + e.span : e.count;
  if (e.groups == 1) {
    for_range<V>(begin, end, [&]<int W>(int64_t at) {
      C total[W] = {};
      add_sizes<Square, T, W>(e, at, 0, total);
      update<W>(importance + at, total, weight, decay);
    });
    return;
  }
  // one turn of V elements a column of threads, one thread of each group
  __shared__ C totals[V][kThreads];
  const int columns = kThreads / e.groups, column = threadIdx.x % columns, group = threadIdx.x / columns;
  const int64_t at = begin + column * V;
  C total[V] = {};
  if (at < end) add_sizes<Square, T, V>(e, at, group, total);
#pragma unroll
  for (int k = 0; k < V; ++k) totals[k][threadIdx.x] = total[k];
  __syncthreads();
  if (group > 0 || at >= end) return;
  for (int g = 1; g < e.groups; ++g)
#pragma unroll
    for (int k = 0; k < V; ++k) total[k] += totals[k][g * columns + column];
  update<V>(importance + at, total, weight, decay);
}

template <bool Square, typename T, int N>
__global__ void __launch_bounds__(kThreads) accumulate_kernel(const __grid_constant__ Table<Accumulated, N> table,
                                                              compute_t<T> weight, compute_t<T> decay) {
  const Accumulated& e = entry_of_block(table);
  if (e.vectorizes)
    accumulate<Square, T, vector_width<T>>(e, weight, decay);
  else
    accumulate<Square, T, 1>(e, weight, decay);
}

// --- penalty --------------------------------------------------------------------------------------------------------

// One tensor of each list; grad is null where the penalty alone is wanted.
struct Anchored {
  void* grad;
  const void *param, *anchor, *importance;
  int64_t count;
  int64_t first_block;
  bool vectorizes;

  int64_t blocks() const { return ceil_div(count, kSpan); }
};

// The block's part of the penalty to partial[block]; with Grads grad += factor scale importance (param - anchor), or
// where not `add` that alone.
template <bool Grads, typename T, int N>
__global__ void __launch_bounds__(kThreads)
penalty_kernel(const __grid_constant__ Table<Anchored, N> table, Scalar<compute_t<T>> scale, compute_t<T> factor,
               bool add, double* partial) {
  using C = compute_t<T>;
  const Anchored& e = entry_of_block(table);
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - e.first_block) * kSpan;
  const int64_t end = begin + kSpan < e.count ? begin + kSpan : e.count;
  if constexpr (Grads) factor *= scale.get();
  C sum = 0;
  auto body = [&]<int V>(int64_t at) {
    const Vector<T, V> param = load<V>(static_cast<const T*>(e.param) + at);
    const Vector<T, V> anchor = load<V>(static_cast<const T*>(e.anchor) + at);
    const Vector<C, V> omega = load<V>(static_cast<const C*>(e.importance) + at);
    Vector<T, V> grad{};
    if (Grads && add) grad = load<V>(static_cast<const T*>(e.grad) + at);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const C p = static_cast<C>(param.at[k]), a = static_cast<C>(anchor.at[k]);
      const C pull = penalty_pull(omega.at[k], p, a);
      sum += pull * (p - a);
      if constexpr (Grads) grad.at[k] = static_cast<T>(static_cast<C>(grad.at[k]) + factor * pull);
    }
    if constexpr (Grads) store(static_cast<T*>(e.grad) + at, grad);
  };
  if (e.vectorizes)
    for_range<vector_width<T>>(begin, end, body);
  else
    for_range<1>(begin, end, body);
  const double total = block_sum(static_cast<double>(sum));
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <typename C>
__global__ void __launch_bounds__(kThreads) sum_kernel(const double* partial, int64_t count, C* out) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<C>(sum);
}

// --- host: lists ----------------------------------------------------------------------------------------------------

Accumulated accumulated(const Tensor& grad, void* importance, int64_t count, int64_t samples, int64_t step) {
  constexpr int64_t kBusy = 1 << 16;  // threads that keep a GPU's memory busy
  const int64_t width = 16 / static_cast<int64_t>(grad.element_size());
  Accumulated e{importance, grad.const_data_ptr(), count, samples, step, 0, 1, kSpan, false};
  const bool whole = samples == 1 || (count % width == 0 && step % width == 0);
  e.vectorizes = aligned16(e.grad) && aligned16(importance) && whole;
  const int64_t vector = e.vectorizes ? width : 1;
  while (e.groups < kWarp && count / vector * e.groups < kBusy && samples >= 8 * e.groups) e.groups *= 2;
  if (e.groups > 1) e.span = static_cast<int32_t>(kThreads / e.groups * vector);
  return e;
}

template <typename T>
void launch_accumulate(const char* op, const std::vector<Accumulated>& entries, double weight, double decay,
                       bool square, cudaStream_t stream) {
  using C = compute_t<T>;
  const C w = static_cast<C>(weight), d = static_cast<C>(decay);
  launch_entries(op, entries, [&]<int N>(const Table<Accumulated, N>& table, unsigned blocks) {
    if (square)
      accumulate_kernel<true, T, N><<<blocks, kThreads, 0, stream>>>(table, w, d);
    else
      accumulate_kernel<false, T, N><<<blocks, kThreads, 0, stream>>>(table, w, d);
  });
}

// Whether each sample of `grad` [N, ...] lies as `order` [...] does.
bool samples_lie_as(const Tensor& grad, const Tensor& order) {
  for (int64_t d = 0; d < order.dim(); ++d)
    if (order.size(d) != 1 && grad.stride(d + 1) != order.stride(d)) return false;
  return true;
}

void check_accumulate(const char* op, const std::vector<Tensor>& importances, const std::vector<Tensor>& grads) {
  check_lists(op, importances, grads);
  for (size_t t = 0; t < grads.size(); ++t) {
    const Tensor &omega = importances[t], &grad = grads[t];
    check_cuda(op, "importances", omega, importances[0]);
    check_cuda(op, "grads", grad, importances[0]);
    check_dtype(op, "importances", omega, compute_dtype(grad.scalar_type()));
    const int64_t front = grad.dim() - omega.dim();
    bool same = front == 0 || front == 1;
    for (int64_t d = 0; same && d < omega.dim(); ++d) same = grad.size(d + front) == omega.size(d);
    MASKCL_CHECK(same, op, ": grads[", t, "] has ", grad.numel(), " elements in ", grad.dim(),
                 " dimensions, wanted importances[", t, "]'s ", omega.numel(), " in ", omega.dim(),
                 ", or samples of that");
  }
}

// The lists of a penalty, checked, each entry's tensors in one order of memory.
class Penalty {
 public:
  Penalty(const char* op, const std::vector<Tensor>& params, const std::vector<Tensor>& anchors,
          const std::vector<Tensor>& importances)
      : op_(op), params_(params), anchors_(anchors), importances_(importances) {
    check_lists(op, params, anchors);
    check_lists(op, params, importances);
    MASKCL_CHECK(!params.empty(), op, ": found no tensors, wanted at least one");
    for (size_t t = 0; t < params.size(); ++t) {
      check_cuda(op, "params", params[t], params[0]);
      check_like_param("anchors", anchors[t], t);
      check_same_shape(op, "importances", importances[t], params[t], "params");
      check_dtype(op, "importances", importances[t], compute_dtype(params[t].scalar_type()));
      check_dtype(op, "importances", importances[t], importances[0].scalar_type());
      blocks_ += ceil_div(params[t].numel(), kSpan);
    }
  }

  void check_like_param(const char* name, const Tensor& tensor, size_t t) const {
    check_same_shape(op_, name, tensor, params_[t], "params");
    check_dtype(op_, name, tensor, params_[t].scalar_type());
  }

  // Runs launch<T>(table, blocks, partial) for all and returns the sum of what it leaves in partial.
  template <typename Launch>
  Tensor run(const std::vector<Tensor>* grads, Launch&& launch) {
    const Tensor partial = empty_vector(params_[0], blocks_, ScalarType::Double);
    double* to = data<double>(partial);
    for_dtypes<Anchored>(
        op_, params_, [&](std::vector<Anchored>& entries, size_t t) { entries.push_back(entry(grads, t)); },
        [&]<typename T>(const std::vector<Anchored>& entries) {
          launch_entries(op_, entries, [&]<int N>(const Table<Anchored, N>& table, unsigned blocks) {
            launch.template operator()<T>(table, blocks, to);
            to += blocks;
          });
        });
    written_.finish();
    return sum(partial);
  }

 private:
  Anchored entry(const std::vector<Tensor>* grads, size_t t) {
    const Tensor param = order_from(params_[t]);
    const Tensor anchor = in_order_of(anchors_[t], param), omega = in_order_of(importances_[t], param);
    Anchored e{};
    e.param = param.const_data_ptr();
    e.anchor = anchor.const_data_ptr();
    e.importance = omega.const_data_ptr();
    e.count = param.numel();
    kept_.insert(kept_.end(), {param, anchor, omega});
    if (grads) {
      kept_.push_back(written_.in_order((*grads)[t], param));
      e.grad = kept_.back().mutable_data_ptr();
    }
    e.vectorizes = aligned16(e.grad) && aligned16(e.param) && aligned16(e.anchor) && aligned16(e.importance);
    return e;
  }

  Tensor sum(const Tensor& partial) const {
    const Tensor out = torch::stable::new_empty(importances_[0], {});
    const auto run = [&]<typename C>() {
      sum_kernel<C><<<1, kThreads, 0, current_stream(out)>>>(const_data<double>(partial), blocks_, data<C>(out));
    };
    out.scalar_type() == ScalarType::Double ? run.template operator()<double>() : run.template operator()<float>();
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return out;
  }

  const char* op_;
  const std::vector<Tensor>&params_, &anchors_, &importances_;
  int64_t blocks_ = 0;
  std::vector<Tensor> kept_;  // until the launch
  Written written_;
};

}  // namespace

void add_sizes_of_samples(const char* op, const Tensor& parts, int64_t samples, void* importance, double weight,
                          bool square) {
  const int64_t count = parts.numel() / samples;
  dispatch_float(parts.scalar_type(), op, [&]<typename T>() {
    launch_accumulate<T>(op, {accumulated(parts, importance, count, samples, count)}, weight, 1.0, square,
                         current_stream(parts));
  });
}

void mas_accumulate_(const std::vector<Tensor>& importances, const std::vector<Tensor>& grads, double weight,
                     double decay, bool square) {
  const char* op = "mas_accumulate_";
  check_lists(op, importances, grads);
  if (importances.empty()) return;
  const DeviceGuard guard(importances[0].get_device_index());
  check_accumulate(op, importances, grads);
  const cudaStream_t stream = current_stream(importances[0]);
  Written written;
  std::vector<Tensor> kept;  // until the launch
  auto fill = [&](std::vector<Accumulated>& entries, size_t t) {
    const bool sampled = grads[t].dim() > importances[t].dim();
    Tensor order = order_from(importances[t]), grad = grads[t];
    if (!sampled) {
      grad = in_order_of(grad, order);
    } else if (!samples_lie_as(grad, order)) {
      order = torch::stable::contiguous(order);
      grad = torch::stable::contiguous(grad);
    }
    const Tensor omega = written.in_order(importances[t], order);
    kept.insert(kept.end(), {omega, grad});
    entries.push_back(accumulated(grad, omega.mutable_data_ptr(), omega.numel(), sampled ? grad.size(0) : 1,
                                  sampled ? grad.stride(0) : 0));
  };
  for_dtypes<Accumulated>(op, grads, fill, [&]<typename T>(const std::vector<Accumulated>& entries) {
    launch_accumulate<T>(op, entries, weight, decay, square, stream);
  });
  written.finish();
}

Tensor mas_penalty(const std::vector<Tensor>& params, const std::vector<Tensor>& anchors,
                   const std::vector<Tensor>& importances) {
  Penalty penalty("mas_penalty", params, anchors, importances);
  const DeviceGuard guard(params[0].get_device_index());
  const cudaStream_t stream = current_stream(params[0]);
  return penalty.run(nullptr, [&]<typename T, int N>(const Table<Anchored, N>& table, unsigned blocks, double* to) {
    using C = compute_t<T>;
    penalty_kernel<false, T, N><<<blocks, kThreads, 0, stream>>>(table, Scalar<C>{}, C(0), false, to);
  });
}

Tensor mas_penalty_grads_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                          const std::vector<Tensor>& anchors, const std::vector<Tensor>& importances,
                          const std::optional<Tensor>& scale, double strength, bool add) {
  const char* op = "mas_penalty_grads_";
  Penalty penalty(op, params, anchors, importances);
  check_lists(op, params, grads);
  for (size_t t = 0; t < grads.size(); ++t) penalty.check_like_param("grads", grads[t], t);
  const DeviceGuard guard(params[0].get_device_index());
  const cudaStream_t stream = current_stream(params[0]);
  Tensor typed;
  return penalty.run(&grads, [&]<typename T, int N>(const Table<Anchored, N>& table, unsigned blocks, double* to) {
    using C = compute_t<T>;
    const Scalar<C> by = scale ? scalar_of<C>(op, "scale", *scale, params[0], typed) : Scalar<C>{nullptr, C(1)};
    penalty_kernel<true, T, N><<<blocks, kThreads, 0, stream>>>(table, by, static_cast<C>(2 * strength), add, to);
  });
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("mas_accumulate_", TORCH_BOX(&maskcl::gpu::mas_accumulate_));
  m.impl("mas_penalty", TORCH_BOX(&maskcl::gpu::mas_penalty));
  m.impl("mas_penalty_grads_", TORCH_BOX(&maskcl::gpu::mas_penalty_grads_));
}
