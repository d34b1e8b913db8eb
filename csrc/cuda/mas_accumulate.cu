// Importances on a GPU: one launch for the list, however many samples a gradient has, 16 bytes at a time.
#include "../lists.h"
#include "importance.cuh"
#include "table.cuh"

namespace maskcl::gpu {
namespace {

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

// --- host -----------------------------------------------------------------------------------------------------------

Accumulated accumulated(void* importance, const Tensor& grad, int64_t count, int64_t samples, int64_t step) {
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
    maskcl::check_accumulated(op, t, omega, grad);
  }
}

}  // namespace

void add_sizes_of_samples(const char* op, const Tensor& parts, int64_t samples, void* importance, double weight,
                          bool square) {
  const int64_t count = parts.numel() / samples;
  dispatch_float(parts.scalar_type(), op, [&]<typename T>() {
    launch_accumulate<T>(op, {accumulated(importance, parts, count, samples, count)}, weight, 1.0, square,
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
    entries.push_back(accumulated(omega.mutable_data_ptr(), grad, omega.numel(), sampled ? grad.size(0) : 1,
                                  sampled ? grad.stride(0) : 0));
  };
  for_dtypes<Accumulated>(op, grads, fill, [&]<typename T>(const std::vector<Accumulated>& entries) {
    launch_accumulate<T>(op, entries, weight, decay, square, stream);
  });
  written.finish();
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) { m.impl("mas_accumulate_", TORCH_BOX(&maskcl::gpu::mas_accumulate_)); }
