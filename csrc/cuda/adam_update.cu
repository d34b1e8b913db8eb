// Adam's step of a whole model on a GPU: one launch for the list, before it one that counts the steps and works out what
// depends on them; see update.cu.
#include <cmath>

#include "steps.cuh"

namespace maskcl::gpu {
namespace {

struct AdamNumbers {
  double beta1, beta2, eps;
  bool decoupled;
};

template <bool Random, typename T, typename S>
__device__ __forceinline__ void adam_segment(const Moved& e, const Place& place, bool exact, const Gradients& gradients,
                                             const AdamNumbers& n, const Rounding& rounding) {
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
  const uint64_t key = Random ? rounding.key() : 0;
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
      const uint64_t random = Random ? random_bits(key, e.counter(place.row, at + k)) : 0;
      p.at[k] = rounded<Random, T>(param, random, kParamBits);
      m.at[k] = rounded<Random, S>(first, random, kFirstBits);
      v.at[k] = rounded<Random, S>(second, random, kSecondBits);
    }
    store(params + at, p);
    store(firsts + at, m);
    store(seconds + at, v);
  });
}

// Blocks of a multiprocessor for which nothing is spilled: each lane has four loads of 16 bytes on their way.
template <typename T, int N, bool Random>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 || Random ? 2 : 3)
adam_kernel(const __grid_constant__ Table<Moved, N> table, bool exact, Gradients gradients, AdamNumbers numbers,
            Rounding rounding) {
  if (!gradients.are_finite()) return;
  const Moved& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  if constexpr (sizeof(T) == 2)
    if (e.wide) return adam_segment<Random, T, float>(e, place, exact, gradients, numbers, rounding);
  adam_segment<Random, T, T>(e, place, exact, gradients, numbers, rounding);
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
__global__ void __launch_bounds__(kThreads) count_steps_kernel(const __grid_constant__ Table<Counted, N> table, Number rate,
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

// One block's sum of squares goes to parts[its number].// Adam's entries, and those of the kernel that counts their steps.
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
      scratch_ = fresh(params[0], {static_cast<int64_t>(3 * steps.size())}, ScalarType::Double);
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
      count_steps_kernel<N><<<blocks, kThreads, 0, stream>>>(table, rate_, found_inf_, numbers_);
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
                  const MaybeTensor& norm, double max_norm, const MaybeTensor& draw, int64_t seed,
                  const std::vector<int64_t>& places) {
  const char* op = "adam_update_";
  List list(op, params, groups);
  list.check_length("grads", grads.size());
  list.check_length("exp_avgs", exp_avgs.size());
  list.check_length("exp_avg_sqs", exp_avg_sqs.size());
  list.check_length("steps", steps.size());
  list.check_sides(out_tasks, in_tasks);
  const Pace pace{lr, weight_decay, bounds, draw ? &places : nullptr};
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
  const Rounding rounding{number_of(op, "draw", draw, 0, params[0], kept), seed};
  const Number factor = number_of(op, "rate", rate, 1, params[0], kept);
  Counts counts(op, params, steps, factor, gradients.found_inf, numbers);
  if (gradients.found_inf.on_device == nullptr && gradients.found_inf.on_host != 0) return;
  std::vector<Moved> moves(params.size());
  for (size_t t = 0; t < params.size(); ++t) {
    Moved& e = moves[t] = moved(list, t, grads[t], out_tasks, in_tasks, pace);
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
      for_rounding<T>(draw.has_value(), [&]<bool Random>() {
        adam_kernel<T, N, Random><<<blocks, kThreads, 0, stream>>>(table, exact, gradients, numbers, rounding);
      });
    });
  });
  list.finish();
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) { m.impl("adam_update_", TORCH_BOX(&maskcl::gpu::adam_update_)); }
