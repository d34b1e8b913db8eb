// One optimizer step of a whole model: unscale, clip, decay, moments, step and bound in one pass over memory, what is
// protected left out. One parallel region for all tensors.

#include <cmath>

#include "step_loops.h"
#include "step_weights.h"

namespace maskcl {
namespace {

// Calls body<T, S>(offset, spans, random) for spans of parameter t; random is null where it rounds to nearest.
template <typename F>
void step_spans(const char* op, const Weights& weights, const Rounding& rounding, int64_t t, bool wide, int64_t at,
                const Spans& spans, const F& body) {
  dispatch_state(op, weights.dtype(t), wide, [&]<typename T, typename S>() {
    const uint64_t* none = nullptr;
    if (!std::is_same_v<T, BFloat16> || !rounding.is_random())
      return body.template operator()<T, S>(at, spans, none);
    for (int64_t n = 0; n < spans.count; ++n) {
      const Span& span = spans.spans[n];
      const int64_t from = at + span.begin;
      rounding.for_pieces(weights, t, from, span.end - span.begin,
                          [&](int64_t begin, int64_t length, const uint64_t* random) {
                            const Span piece{0, length, span.mixed};
                            const int32_t* hits = span.mixed ? spans.hits + span.begin + begin : nullptr;
                            body.template operator()<T, S>(from + begin, Spans{&piece, 1, hits, length}, random);
                          });
    }
  });
}

struct SgdWork {
  void *p, *m;
  const void* g;
  bool wide;
  SgdFactors<double> f;

  template <typename C>
  SgdFactors<C> as() const {
    return {static_cast<C>(f.lr),       static_cast<C>(f.weight_decay), static_cast<C>(f.bound),
            static_cast<C>(f.momentum), static_cast<C>(f.undampened),   f.nesterov, {}};
  }
};

template <typename T, typename S>
void sgd_spans(const SgdWork& work, const Gradients& gradients, int64_t at, const Spans& spans,
               const uint64_t* random) {
  using C = compute_t<T>;
  T* p = static_cast<T*>(work.p) + at;
  const T* g = static_cast<const T*>(work.g) + at;
  const Unscale<C> unscale = gradients.as<C>();
  const SgdFactors<C> f = work.as<C>();
  S* m = static_cast<S*>(work.m) + at;
  if constexpr (std::is_same_v<T, BFloat16>)
    if (random)
      return work.m ? run_sgd(p, g, m, spans, unscale, f, random)
                    : run_plain_sgd(p, g, spans, unscale, f, random);
  if (work.m == nullptr) return run_plain_sgd(p, g, spans, unscale, f, gradients.used());
  run_sgd(p, g, m, spans, unscale, f, gradients.used());
}

void sgd_update_cpu(const Handles& params, const Handles& grads, const Handles& momenta, const Handles& out_tasks,
                    const Handles& in_tasks, const std::vector<int64_t>& groups, bool exact, const Numbers& lr,
                    const Numbers& weight_decay, const Numbers& bounds, double momentum, double dampening,
                    bool nesterov, bool maximize, bool first, const MaybeTensor& rate, const MaybeTensor& scale,
                    const MaybeTensor& found_inf, const MaybeTensor& norm, double max_norm, const MaybeTensor& draw,
                    int64_t seed, const std::vector<int64_t>& places) {
  const char* op = "sgd_update_";
  Weights weights(op, params, grads, out_tasks, in_tasks, groups);
  weights.check_numbers("lr", lr);
  weights.check_numbers("weight_decay", weight_decay);
  weights.check_numbers("bounds", bounds);
  std::vector<View> buffers;
  if (!momenta.empty()) buffers = weights.state("momenta", momenta);
  const Gradients gradients(op, maximize, scale, norm, max_norm);
  const Rounding rounding(op, draw, seed, places, params.size());
  const double pace = value_or(op, "rate", rate, 1);
  if (value_or(op, "found_inf", found_inf, 0) != 0) return;
  weights.prepare(exact);
  std::vector<SgdWork> works(params.size());
  for (size_t t = 0; t < params.size(); ++t) {
    works[t] = {weights.param(t), nullptr, weights.grad(t), false,
                {lr[t] * pace, weight_decay[t], bounds[t], momentum, first ? 1 : 1 - dampening, nesterov, {}}};
    if (momenta.empty()) continue;
    // Buffers that nobody has written: from 0 the first step makes them the gradient.
    if (first) {
      Tensor buffer = momenta.tensor(t);
      torch::stable::zero_(buffer);
    }
    works[t].m = weights.state(momenta, buffers[t], t);
    works[t].wide = weights.is_wide(buffers[t], t);
  }
  weights.for_spans(kSgdGrain, [&](int64_t t, int64_t, int64_t at, const Spans& spans) {
    step_spans(op, weights, rounding, t, works[t].wide, at, spans, [&]<typename T, typename S>(const auto&... what) {
      sgd_spans<T, S>(works[t], gradients, what...);
    });
  });
  weights.finish();
}

struct AdamWork {
  void *p, *m, *v;
  const void* g;
  bool wide;
  AdamFactors<double> f;

  template <typename C>
  AdamFactors<C> as() const {
    return {static_cast<C>(f.step_size),    static_cast<C>(f.root),  static_cast<C>(f.kept),
            static_cast<C>(f.weight_decay), static_cast<C>(f.bound), static_cast<C>(f.beta2),
            static_cast<C>(f.eps),          static_cast<C>(f.weight1), static_cast<C>(f.weight2),
            {}};
  }
};

template <typename T, typename S>
void adam_spans(const AdamWork& work, const Gradients& gradients, int64_t at, const Spans& spans,
                const uint64_t* random) {
  using C = compute_t<T>;
  T* p = static_cast<T*>(work.p) + at;
  const T* g = static_cast<const T*>(work.g) + at;
  S *m = static_cast<S*>(work.m) + at, *v = static_cast<S*>(work.v) + at;
  if constexpr (std::is_same_v<T, BFloat16>)
    if (random) return run_adam(p, g, m, v, spans, gradients.as<C>(), work.as<C>(), random);
  run_adam(p, g, m, v, spans, gradients.as<C>(), work.as<C>(), gradients.used());
}

// The count of a parameter's steps, float32 or float64.
struct Step {
  View view;
  bool is_float;

  // One more.
  double next() { return is_float ? *static_cast<float*>(view.data) += 1 : *static_cast<double*>(view.data) += 1; }
};

std::vector<Step> steps_of(const char* op, const Handles& steps, size_t count) {
  static const int32_t f32 = aoti_torch_dtype_float32(), f64 = aoti_torch_dtype_float64();
  check_length(op, "steps", steps.size(), count);
  std::vector<Step> found;
  found.reserve(count);
  for (size_t t = 0; t < count; ++t) {
    const View view(steps[t]);
    if (view.numel != 1) check_one(op, entry_name("steps", t).c_str(), steps.tensor(t));
    MASKCL_CHECK(view.dtype == f32 || view.dtype == f64, op, ": steps[", t, "] is ",
                 torch::headeronly::toString(steps.tensor(t).scalar_type()), ", wanted Float or Double");
    found.push_back({view, view.dtype == f32});
  }
  return found;
}

void adam_update_cpu(const Handles& params, const Handles& grads, const Handles& exp_avgs, const Handles& exp_avg_sqs,
                     const Handles& steps, const Handles& out_tasks, const Handles& in_tasks,
                     const std::vector<int64_t>& groups, bool exact, const Numbers& lr, const Numbers& weight_decay,
                     const Numbers& bounds, double beta1, double beta2, double eps, bool decoupled, bool maximize,
                     const MaybeTensor& rate, const MaybeTensor& scale, const MaybeTensor& found_inf,
                     const MaybeTensor& norm, double max_norm, const MaybeTensor& draw, int64_t seed,
                     const std::vector<int64_t>& places) {
  const char* op = "adam_update_";
  Weights weights(op, params, grads, out_tasks, in_tasks, groups);
  weights.check_numbers("lr", lr);
  weights.check_numbers("weight_decay", weight_decay);
  weights.check_numbers("bounds", bounds);
  const std::vector<View> firsts = weights.state("exp_avgs", exp_avgs);
  const std::vector<View> seconds = weights.state("exp_avg_sqs", exp_avg_sqs);
  for (size_t t = 0; t < params.size(); ++t)
    if (seconds[t].dtype != firsts[t].dtype)
      check_dtype(op, entry_name("exp_avg_sqs", t).c_str(), exp_avg_sqs.tensor(t), exp_avgs.tensor(t).scalar_type());
  std::vector<Step> counts = steps_of(op, steps, params.size());
  const Gradients gradients(op, maximize, scale, norm, max_norm);
  const Rounding rounding(op, draw, seed, places, params.size());
  const double pace = value_or(op, "rate", rate, 1);
  if (value_or(op, "found_inf", found_inf, 0) != 0) return;
  weights.prepare(exact);
  std::vector<AdamWork> works(params.size());
  double counted = 0, bias1 = 0, root = 0;
  for (size_t t = 0; t < params.size(); ++t) {
    const double step = counts[t].next(), speed = lr[t] * pace;
    if (step != counted) {  // parameters mostly are of one age
      counted = step;
      bias1 = 1 - std::pow(beta1, step);
      root = std::sqrt(1 - std::pow(beta2, step));
    }
    works[t] = {weights.param(t), weights.state(exp_avgs, firsts[t], t), weights.state(exp_avg_sqs, seconds[t], t),
                weights.grad(t), weights.is_wide(firsts[t], t),
                {speed / bias1, root, decoupled ? 1 - speed * weight_decay[t] : 1, decoupled ? 0 : weight_decay[t],
                 bounds[t], beta2, eps, 1 - beta1, 1 - beta2, {}}};
  }
  weights.for_spans(kAdamGrain, [&](int64_t t, int64_t, int64_t at, const Spans& spans) {
    step_spans(op, weights, rounding, t, works[t].wide, at, spans, [&]<typename T, typename S>(const auto&... what) {
      adam_spans<T, S>(works[t], gradients, what...);
    });
  });
  weights.finish();
}

Tensor unprotected_norm_cpu(const Handles& grads, const Handles& out_tasks, const Handles& in_tasks,
                            const std::vector<int64_t>& groups, bool exact, const MaybeTensor& scale) {
  const char* op = "unprotected_norm";
  MASKCL_CHECK(!grads.empty(), op, ": grads is empty, wanted a tensor");
  Weights weights(op, grads, grads, out_tasks, in_tasks, groups);
  const double by = value_or(op, "scale", scale, 1);
  weights.prepare(exact);
  std::vector<double> sums(weights.chunks(), 0.0);  // added in one order, on any number of threads
  weights.for_spans(kSgdGrain, [&](int64_t t, int64_t chunk, int64_t at, const Spans& spans) {
    dispatch_float(weights.dtype(t), op, [&]<typename T>() {
      sums[chunk] += run_squares(static_cast<const T*>(weights.param(t)) + at, spans, static_cast<compute_t<T>>(by));
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  Tensor norm = fresh(grads.tensor(0), {}, compute_dtype(weights.dtype(0)));
  dispatch_float(norm.scalar_type(), op, [&]<typename T>() { *data<T>(norm) = static_cast<T>(std::sqrt(total)); });
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("sgd_update_", TORCH_BOX(&sgd_update_cpu));
  m.impl("adam_update_", TORCH_BOX(&adam_update_cpu));
  m.impl("unprotected_norm", TORCH_BOX(&unprotected_norm_cpu));
}

}  // namespace maskcl
