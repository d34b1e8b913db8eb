// Importances and their penalty: one pass over a whole model in one parallel region.

#include "../products.h"
#include "anchored.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 1024;  // elements whose sum over samples stays in the nearest cache

// --- loops ----------------------------------------------------------------------------------------------------------

template <bool Square, typename T, typename C>
MASKCL_INLINE void accumulate_loop(C* omega, const T* g, int64_t count, C weight, C decay) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i)
    omega[i] = decay * omega[i] + weight * importance_size<Square>(static_cast<C>(g[i]));
}

// total[i] += size of g[i]
template <bool Square, typename T, typename C>
MASKCL_INLINE void add_sizes_loop(C* total, const T* g, int64_t count) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) total[i] += importance_size<Square>(static_cast<C>(g[i]));
}

// out[i] = size of x[i], in the dtype of importances
template <bool Square, typename T, typename C>
MASKCL_INLINE void sizes_loop(C* out, const T* x, int64_t count) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) out[i] = importance_size<Square>(static_cast<C>(x[i]));
}

template <typename T, typename C>
MASKCL_INLINE C penalty_loop(const T* param, const T* anchor, const C* omega, int64_t count) {
  C sum = C(0);
  MASKCL_SUM(sum)
  for (int64_t i = 0; i < count; ++i) {
    const C p = static_cast<C>(param[i]), a = static_cast<C>(anchor[i]);
    sum += penalty_pull(omega[i], p, a) * (p - a);
  }
  return sum;
}

template <bool Add, typename T, typename C>
MASKCL_INLINE C penalty_grads_loop(T* g, const T* param, const T* anchor, const C* omega, int64_t count, C factor) {
  C sum = C(0);
  MASKCL_SUM(sum)
  for (int64_t i = 0; i < count; ++i) {
    const C p = static_cast<C>(param[i]), a = static_cast<C>(anchor[i]);
    const C pull = penalty_pull(omega[i], p, a);
    g[i] = static_cast<T>((Add ? static_cast<C>(g[i]) : C(0)) + factor * pull);
    sum += pull * (p - a);
  }
  return sum;
}

// Cloned functions cannot be templates.
#define MASKCL_IMPORTANCE(T, C)                                                                                     \
  MASKCL_CLONES void run_accumulate(C* omega, const T* g, int64_t count, C weight, C decay, bool square) {          \
    square ? accumulate_loop<true>(omega, g, count, weight, decay)                                                  \
           : accumulate_loop<false>(omega, g, count, weight, decay);                                                \
  }                                                                                                                 \
  MASKCL_CLONES void run_add_sizes(C* total, const T* g, int64_t count, bool square) {                              \
    square ? add_sizes_loop<true>(total, g, count) : add_sizes_loop<false>(total, g, count);                        \
  }                                                                                                                 \
  MASKCL_CLONES void run_sizes(C* out, const T* x, int64_t count, bool square) {                                    \
    square ? sizes_loop<true>(out, x, count) : sizes_loop<false>(out, x, count);                                    \
  }                                                                                                                 \
  MASKCL_CLONES C run_penalty(const T* param, const T* anchor, const C* omega, int64_t count) {                     \
    return penalty_loop(param, anchor, omega, count);                                                               \
  }                                                                                                                 \
  MASKCL_CLONES C run_penalty_grads(T* g, const T* param, const T* anchor, const C* omega, int64_t count, C factor, \
                                    bool add) {                                                                     \
    return add ? penalty_grads_loop<true>(g, param, anchor, omega, count, factor)                                   \
               : penalty_grads_loop<false>(g, param, anchor, omega, count, factor);                                 \
  }
MASKCL_IMPORTANCE(float, float)
MASKCL_IMPORTANCE(double, double)
MASKCL_IMPORTANCE(BFloat16, float)
MASKCL_IMPORTANCE(Half, float)

// --- importances ----------------------------------------------------------------------------------------------------

// omega[begin, end) += weight times the sum over `samples` of sizes of g[n * step + begin, ...).
template <typename T, typename C>
void accumulate_samples(C* omega, const T* g, int64_t samples, int64_t step, int64_t begin, int64_t end, C weight,
                        C decay, bool square) {
  C total[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = std::min(kBlock, end - at);
    std::fill_n(total, count, C(0));
    for (int64_t n = 0; n < samples; ++n) run_add_sizes(total, g + n * step + at, count, square);
    run_accumulate(omega + at, total, count, weight, decay, false);
  }
}

void mas_accumulate_cpu(const std::vector<Tensor>& importances, const std::vector<Tensor>& grads, double weight,
                        double decay, bool square) {
  check_lists("mas_accumulate_", importances, grads);
  for (size_t t = 0; t < importances.size(); ++t) check_accumulated("mas_accumulate_", t, importances[t], grads[t]);
  Written written;
  std::vector<Tensor> omegas, gradients;
  for (size_t t = 0; t < importances.size(); ++t) {
    const bool sampled = grads[t].dim() > importances[t].dim();
    const Tensor order = sampled ? torch::stable::contiguous(importances[t]) : order_from(importances[t]);
    omegas.push_back(written.in_order(importances[t], order));
    gradients.push_back(sampled ? torch::stable::contiguous(grads[t]) : in_order_of(grads[t], order));
  }
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < omegas.size(); ++t) cut(t, omegas[t].numel(), chunks);
  parallel(chunks.size(), kChunk, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const auto [t, begin, end] = chunks[c];
      const Tensor &omega = omegas[t], &grad = gradients[t];
      const int64_t size = omega.numel(), samples = grad.numel() / size;
      const bool sampled = grad.dim() > omega.dim();
      dispatch_float(grad.scalar_type(), "mas_accumulate_", [&]<typename T>() {
        using C = compute_t<T>;
        const C w = static_cast<C>(weight), d = static_cast<C>(decay);
        const T* g = const_data<T>(grad);
        if (sampled)
          accumulate_samples(data<C>(omega), g, samples, size, begin, end, w, d, square);
        else
          run_accumulate(data<C>(omega) + begin, g + begin, end - begin, w, d, square);
      });
    }
  });
  written.finish();
}

// --- penalty --------------------------------------------------------------------------------------------------------

Tensor mas_penalty_cpu(const Handles& params, const Handles& anchors, const Handles& importances) {
  const Anchored list("mas_penalty", nullptr, params, anchors, importances);
  return list.sum(importances.tensor(0), [&]<typename T>(const Entry& e, int64_t begin, int64_t count) -> double {
    return run_penalty(at<T>(e.param, begin), at<T>(e.anchor, begin), at<compute_t<T>>(e.omega, begin), count);
  });
}

Tensor mas_penalty_grads_cpu(const Handles& grads, const Handles& params, const Handles& anchors,
                             const Handles& importances, const std::optional<Tensor>& scale, double strength, bool add) {
  const char* op = "mas_penalty_grads_";
  Anchored list(op, &grads, params, anchors, importances);
  double factor = 2 * strength;
  if (scale) check_one(op, "scale", *scale);
  if (scale) factor *= *const_data<double>(to_dtype(*scale, ScalarType::Double));
  const Tensor value =
      list.sum(importances.tensor(0), [&]<typename T>(const Entry& e, int64_t begin, int64_t count) -> double {
        using C = compute_t<T>;
        return run_penalty_grads(static_cast<T*>(e.grad) + begin, at<T>(e.param, begin), at<T>(e.anchor, begin),
                                 at<C>(e.omega, begin), count, static_cast<C>(factor), add);
      });
  list.finish();
  return value;
}

// --- linear_importance ----------------------------------------------------------------------------------------------

// |x| or x^2 of contiguous x, in the dtype of importances.
void write_sizes(const Tensor& x, const Tensor& out, bool square) {
  dispatch_float(x.scalar_type(), "linear_importance_", [&]<typename T>() {
    const T* from = const_data<T>(x);
    auto* to = data<compute_t<T>>(out);
    parallel(x.numel(), 1, [&](int64_t begin, int64_t end) {
      run_sizes(to + begin, from + begin, end - begin, square);
    });
  });
}

// Samples at a time, of `bytes` each: enough for the product to be long, few enough for their sizes to stay in cache.
int64_t samples_at_a_time(int64_t samples, int64_t bytes) {
  constexpr int64_t kBytes = 16 << 20, kLeast = 256;
  return std::min(samples, std::max(kLeast, kBytes / std::max<int64_t>(1, bytes)));
}

// omega += weight |g|^T |x|
void add_outer_sizes(const Tensor& omega, const Tensor& x, const Tensor& g, double weight, bool square) {
  const int64_t samples = x.size(0), ins = x.size(1), outs = g.size(1);
  const int64_t rows = samples_at_a_time(samples, (ins + outs) * omega.element_size());
  const Tensor a = fresh(omega, {rows, outs}), b = fresh(omega, {rows, ins});
  for (int64_t first = 0; first < samples; first += rows) {
    const int64_t count = std::min(rows, samples - first);
    const Tensor sizes_g = rows_of(a, 0, count), sizes_x = rows_of(b, 0, count);
    write_sizes(rows_of(g, first, count), sizes_g, square);
    write_sizes(rows_of(x, first, count), sizes_x, square);
    matmul_add(transposed(sizes_g), sizes_x, omega, weight);
  }
}

// omega += weight sum_n |g[n]^T x[n]|: a few samples' products at a time, made positive while in cache. Products take rows
// or columns, whichever lie side by side, so that nothing is copied but to convert it.
void add_sample_products(const Tensor& omega, const Tensor& x, const Tensor& g, double weight, bool square) {
  constexpr int64_t kBytes = 4 << 20;
  const int64_t samples = x.size(0), bytes = omega.numel() * omega.element_size();
  const int64_t chunk = std::min(samples, std::max<int64_t>(1, kBytes / bytes));
  const Tensor scratch = fresh(omega, {chunk, omega.size(0), omega.size(1)});
  const auto wide = [sums = omega.scalar_type()](const Tensor& t) {
    return t.scalar_type() == sums ? t : torch::stable::to(t, sums);
  };
  for (int64_t first = 0; first < samples; first += chunk) {
    const int64_t count = std::min(chunk, samples - first);
    const Tensor products = rows_of(scratch, 0, count);
    Tensor gs = wide(rows_of(g, first, count));
    batched_matmul_out(torch::stable::transpose(gs, 1, 2), wide(rows_of(x, first, count)), products);
    mas_accumulate_cpu({omega}, {products}, weight, 1.0, square);
  }
}

void linear_importance_cpu(const Tensor& importance, const Tensor& x, const Tensor& grad_out, double weight,
                           bool square) {
  check_importance("linear_importance_", importance, x, grad_out);
  if (importance.numel() == 0 || x.numel() == 0 || grad_out.numel() == 0) return;
  Written written;
  const Tensor omega = written.in_order(importance, torch::stable::contiguous(importance));
  if (x.dim() == 3 && x.size(1) > 1) {
    add_sample_products(omega, x, grad_out, weight, square);
  } else {
    const Tensor xs = torch::stable::contiguous(x), gs = torch::stable::contiguous(grad_out);
    add_outer_sizes(omega, torch::stable::view(xs, {x.size(0), omega.size(1)}),
                    torch::stable::view(gs, {x.size(0), omega.size(0)}), weight, square);
  }
  written.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("mas_accumulate_", TORCH_BOX(&mas_accumulate_cpu));
  m.impl("mas_penalty", TORCH_BOX(&mas_penalty_cpu));
  m.impl("mas_penalty_grads_", TORCH_BOX(&mas_penalty_grads_cpu));
  m.impl("linear_importance_", TORCH_BOX(&linear_importance_cpu));
}

}  // namespace maskcl
