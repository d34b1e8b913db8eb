// The penalty of importances on a GPU: one launch for the list, 16 bytes at a time. Sums are taken by block, then over
// the blocks in order, in float64; blocks are cut by sizes alone, so that they come out alike on every GPU. Importances
// themselves are in mas_accumulate.cu and linear_importance.cu.
#include "../lists.h"
#include "importance.cuh"
#include "table.cuh"

namespace maskcl::gpu {
namespace {

// --- kernels --------------------------------------------------------------------------------------------------------

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

// --- host -----------------------------------------------------------------------------------------------------------

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
      check_cuda(op, "anchors", anchors[t], params[0]);
      check_cuda(op, "importances", importances[t], params[0]);
      check_anchored(op, t, params[t], anchors[t], importances[t], importances[0].scalar_type());
      blocks_ += ceil_div(params[t].numel(), kSpan);
    }
  }

  void check_grad(const Tensor& grad, size_t t) const {
    check_cuda(op_, "grads", grad, params_[0]);
    check_like_param(op_, "grads", t, grad, params_[t]);
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
    const Tensor out = fresh(importances_[0], {});
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
  for (size_t t = 0; t < grads.size(); ++t) penalty.check_grad(grads[t], t);
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
  m.impl("mas_penalty", TORCH_BOX(&maskcl::gpu::mas_penalty));
  m.impl("mas_penalty_grads_", TORCH_BOX(&maskcl::gpu::mas_penalty_grads_));
}
