// One optimizer step of a whole model: unscale, clip, decay, moments, step and bound in one pass over memory, what is
// protected left out. One parallel region for all tensors.

#include <cmath>
#include <deque>

#include "../handles.h"
#include "../steps.h"
#include "free_rows.h"

namespace maskcl {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// --- spans ----------------------------------------------------------------------------------------------------------

MASKCL_CLONES void add_hits(int32_t* hits, int32_t out, const int32_t* in, int64_t count, bool fresh) {
  if (fresh) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i) hits[i] = out & in[i];
  } else {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i) hits[i] |= out & in[i];
  }
}

MASKCL_CLONES void find_spans(const int32_t* hits, int64_t count, std::vector<Span>& spans) {
  spans.clear();
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = std::min(begin + kRun, count);
    int32_t taken = 0;
    if (end - begin == kRun)
      for (int64_t i = 0; i < kRun; ++i) taken += hits[begin + i] != 0;
    else
      for (int64_t i = begin; i < end; ++i) taken += hits[i] != 0;
    if (taken == end - begin) continue;
    if (!spans.empty() && spans.back().end == begin) {
      spans.back().end = end;
      spans.back().mixed |= taken != 0;
    } else {
      spans.push_back({begin, end, taken != 0});
    }
  }
}

namespace {

// --- loops ----------------------------------------------------------------------------------------------------------

// T: the parameters' and gradients' dtype, S: the state's. Where `Mixed` an element with hits is written back as it was.
template <bool Scaled, bool Mixed, bool Momentum, typename T, typename S, typename C>
MASKCL_INLINE void sgd_loop(T* p, const T* g, S* m, const int32_t* hits, int64_t count, Unscale<C> unscale,
                            SgdFactors<C> f) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) {
    const T p_before = p[i];
    C grad = static_cast<C>(g[i]), param = static_cast<C>(p_before), buffer = C(0);
    if constexpr (Scaled) grad = unscale(grad);
    if constexpr (Momentum) {
      const S m_before = m[i];
      buffer = static_cast<C>(m_before);
      sgd_step<true>(f, grad, param, buffer);
      const S m_after = static_cast<S>(buffer);
      m[i] = Mixed && hits[i] != 0 ? m_before : m_after;
    } else {
      sgd_step<false>(f, grad, param, buffer);
    }
    const T p_after = static_cast<T>(param);
    p[i] = Mixed && hits[i] != 0 ? p_before : p_after;
  }
}

template <bool Scaled, bool Mixed, typename T, typename S, typename C>
MASKCL_INLINE void adam_loop(T* p, const T* g, S* m, S* v, const int32_t* hits, int64_t count, Unscale<C> unscale,
                             AdamFactors<C> f) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) {
    const T p_before = p[i];
    const S m_before = m[i], v_before = v[i];
    C grad = static_cast<C>(g[i]);
    C param = static_cast<C>(p_before), first = static_cast<C>(m_before), second = static_cast<C>(v_before);
    if constexpr (Scaled) grad = unscale(grad);
    adam_step(f, grad, param, first, second);
    const T p_after = static_cast<T>(param);
    const S m_after = static_cast<S>(first), v_after = static_cast<S>(second);
    const bool keep = Mixed && hits[i] != 0;
    p[i] = keep ? p_before : p_after;
    m[i] = keep ? m_before : m_after;
    v[i] = keep ? v_before : v_after;
  }
}

template <bool Mixed, typename T, typename C>
MASKCL_INLINE double square_loop(const T* g, const int32_t* hits, int64_t count, C scale) {
  double sum = 0;
  MASKCL_SUM(sum)
  for (int64_t i = 0; i < count; ++i) {
    const C grad = static_cast<C>(g[i]) / scale;
    const double x = Mixed && hits[i] != 0 ? C(0) : grad;
    sum += x * x;
  }
  return sum;
}

// Cloned functions cannot be templates.
#define MASKCL_STEPS(T, S, C)                                                                                       \
  MASKCL_CLONES void run_sgd(T* p, const T* g, S* m, const int32_t* hits, int64_t count, const Unscale<C>& unscale, \
                             const SgdFactors<C>& f, bool scaled) {                                                 \
    if (scaled)                                                                                                     \
      hits ? sgd_loop<true, true, true>(p, g, m, hits, count, unscale, f)                                           \
           : sgd_loop<true, false, true>(p, g, m, hits, count, unscale, f);                                         \
    else                                                                                                            \
      hits ? sgd_loop<false, true, true>(p, g, m, hits, count, unscale, f)                                          \
           : sgd_loop<false, false, true>(p, g, m, hits, count, unscale, f);                                        \
  }                                                                                                                 \
  MASKCL_CLONES void run_adam(T* p, const T* g, S* m, S* v, const int32_t* hits, int64_t count,                     \
                              const Unscale<C>& unscale, const AdamFactors<C>& f, bool scaled) {                    \
    if (scaled)                                                                                                     \
      hits ? adam_loop<true, true>(p, g, m, v, hits, count, unscale, f)                                             \
           : adam_loop<true, false>(p, g, m, v, hits, count, unscale, f);                                           \
    else                                                                                                            \
      hits ? adam_loop<false, true>(p, g, m, v, hits, count, unscale, f)                                            \
           : adam_loop<false, false>(p, g, m, v, hits, count, unscale, f);                                          \
  }
MASKCL_STEPS(float, float, float)
MASKCL_STEPS(double, double, double)
MASKCL_STEPS(BFloat16, BFloat16, float)
MASKCL_STEPS(BFloat16, float, float)
MASKCL_STEPS(Half, Half, float)
MASKCL_STEPS(Half, float, float)

#define MASKCL_PLAIN(T, C)                                                                                           \
  MASKCL_CLONES void run_plain_sgd(T* p, const T* g, const int32_t* hits, int64_t count, const Unscale<C>& unscale,  \
                                   const SgdFactors<C>& f, bool scaled) {                                            \
    T* none = nullptr;                                                                                               \
    if (scaled)                                                                                                      \
      hits ? sgd_loop<true, true, false>(p, g, none, hits, count, unscale, f)                                        \
           : sgd_loop<true, false, false>(p, g, none, hits, count, unscale, f);                                      \
    else                                                                                                             \
      hits ? sgd_loop<false, true, false>(p, g, none, hits, count, unscale, f)                                       \
           : sgd_loop<false, false, false>(p, g, none, hits, count, unscale, f);                                     \
  }                                                                                                                  \
  MASKCL_CLONES double run_squares(const T* g, const int32_t* hits, int64_t count, C scale) {                        \
    return hits ? square_loop<true>(g, hits, count, scale) : square_loop<false>(g, hits, count, scale);              \
  }
MASKCL_PLAIN(float, float)
MASKCL_PLAIN(double, double)
MASKCL_PLAIN(BFloat16, float)
MASKCL_PLAIN(Half, float)

// --- lists ----------------------------------------------------------------------------------------------------------

using Numbers = std::vector<double>;
using MaybeTensor = std::optional<Tensor>;

double value_of(const char* op, const char* name, const Tensor& t) {
  check_one(op, name, t);
  if (t.scalar_type() == ScalarType::Float) return *const_data<float>(t);
  return *const_data<double>(to_dtype(t, ScalarType::Double));
}

double value_or(const char* op, const char* name, const MaybeTensor& t, double otherwise) {
  return t ? value_of(op, name, *t) : otherwise;
}

ScalarType floating(const char* op, int32_t dtype) {
  static const int32_t f32 = aoti_torch_dtype_float32(), f64 = aoti_torch_dtype_float64(),
                       bf16 = aoti_torch_dtype_bfloat16(), f16 = aoti_torch_dtype_float16();
  if (dtype == f32) return ScalarType::Float;
  if (dtype == bf16) return ScalarType::BFloat16;
  if (dtype == f16) return ScalarType::Half;
  MASKCL_CHECK(dtype == f64, op, ": found a dtype that is not floating, wanted float32, bfloat16, float16 or float64");
  return ScalarType::Double;
}

// Elements a thread must have: Adam's cost several times what a copied one does.
constexpr int64_t kSgdGrain = 32768, kAdamGrain = 16384;

// The list of parameters with their gradients and sides, checked, in the memory order of the parameters.
class Weights {
 public:
  Weights(const char* op, const Handles& params, const Handles& grads, const Handles& out_tasks,
          const Handles& in_tasks, const std::vector<int64_t>& groups)
      : op_(op), params_(params), groups_(groups) {
    check_length(op, "grads", grads.size(), size());
    check_length(op, "out_tasks", out_tasks.size(), size());
    check_length(op, "in_tasks", in_tasks.size(), size());
    check_length(op, "groups", groups.size(), size());
    entries_.reserve(size());
    for (size_t t = 0; t < size(); ++t) {
      const Entry& e = entries_.emplace_back(params[t], grads[t], out_tasks[t], in_tasks[t]);
      if (e.fits(groups[t])) continue;
      // Says what is wrong.
      check_rows(op, t, params.tensor(t), groups[t]);
      check_like_param(op, "grads", t, grads.tensor(t), params.tensor(t));
      check_tasks(op, t, params.tensor(t), groups[t], out_tasks.tensor(t), in_tasks.tensor(t));
    }
    dtypes_.reserve(size());
    for (const Entry& e : entries_) dtypes_.push_back(floating(op, e.param.dtype));
    grads_ = &grads;
    outs_ = &out_tasks;
    ins_ = &in_tasks;
  }

  size_t size() const { return params_.size(); }
  bool is_wide(const View& state, size_t t) const { return state.dtype != entries_[t].param.dtype; }
  ScalarType dtype(size_t t) const { return dtypes_[t]; }
  void check_numbers(const char* name, const Numbers& numbers) const { check_length(op_, name, numbers.size(), size()); }

  // The views of a list of state; it is of the parameters' dtype or of what that is computed in.
  std::vector<View> state(const char* name, const Handles& state) const {
    check_length(op_, name, state.size(), size());
    std::vector<View> views;
    views.reserve(size());
    for (size_t t = 0; t < size(); ++t) {
      const View& view = views.emplace_back(state[t]);
      if (!view.has_shape_of(entries_[t].param))
        check_shape(op_, entry_name(name, t).c_str(), state.tensor(t), params_.tensor(t), "the parameter");
      if (view.dtype == entries_[t].param.dtype) continue;
      const ScalarType wide = compute_dtype(dtype(t));
      MASKCL_CHECK(state.tensor(t).scalar_type() == wide, op_, ": ", name, "[", t, "] is ",
                   torch::headeronly::toString(state.tensor(t).scalar_type()), ", wanted ",
                   torch::headeronly::toString(dtype(t)), " or ", torch::headeronly::toString(wide));
    }
    return views;
  }

  // Lays the weights out; what param() and the like return is valid until finish().
  void prepare(bool exact) {
    rows_.reserve(size());
    for (size_t t = 0; t < size(); ++t) {
      Entry& e = entries_[t];
      Rows layout{e.rows(), e.columns(), e.param.numel / std::max<int64_t>(e.rows(), 1), groups_[t], {}};
      if (!e.param.contiguous && e.param.numel > 0) {
        Dense& dense = dense_.emplace_back(params_.tensor(t), groups_[t], false);
        layout = dense.rows;
        e.param = View(dense.tensor.get());
      }
      rows_.emplace_back(layout, words(e.out, *outs_, t), words(e.in, *ins_, t), exact);
      add_chunks(rows_[t], t, chunks_);
    }
  }
  void* param(size_t t) const { return entries_[t].param.data; }
  const void* grad(size_t t) { return in_order(*grads_, entries_[t].grad, t, false); }
  void* state(const Handles& list, const View& view, size_t t) { return in_order(list, view, t, true); }

  // Calls body(t, chunk, offset, count, hits) for all that is not protected.
  template <typename F>
  void for_spans(int64_t grain, const F& body) {
    for_chunks(chunks_, grain, [&](const RowChunk& chunk, int64_t index, FreeRows::Found& found) {
      rows_[chunk.weight].for_spans(chunk.begin, chunk.end, found,
                                    [&](int64_t offset, int64_t count, const int32_t* hits) {
                                      body(chunk.weight, index, offset, count, hits);
                                    });
    });
  }
  size_t chunks() const { return chunks_.size(); }

  void finish() {
    for (auto& [original, copy] : copies_) torch::stable::copy_(original, copy);
    for (Dense& dense : dense_) dense.finish();
  }

 private:
  struct Entry {
    View param, grad, out, in;

    Entry(AtenTensorHandle p, AtenTensorHandle g, AtenTensorHandle o, AtenTensorHandle i)
        : param(p), grad(g), out(o), in(i) {}
    int64_t rows() const { return param.sizes[0]; }
    int64_t columns() const { return param.dim > 1 ? param.sizes[1] : 1; }
    bool fits(int64_t groups) const {
      static const int32_t words = aoti_torch_dtype_int64();
      if (param.dim < 1 || groups < 1 || rows() % groups != 0) return false;
      if (grad.dtype != param.dtype || !grad.has_shape_of(param)) return false;
      if (out.dim != 2 || in.dim != 2 || out.dtype != words || in.dtype != words) return false;
      return out.sizes[1] == in.sizes[1] && is_side(out, rows()) && is_side(in, columns() * groups);
    }
    static bool is_side(const View& side, int64_t units) { return side.sizes[0] == units || side.sizes[0] == 1; }
  };

  Words words(const View& side, const Handles& list, size_t t) {
    const int64_t count = side.sizes[1], step = side.sizes[0] == 1 ? 0 : count;
    if (side.contiguous) return {static_cast<const int64_t*>(side.data), step, count};
    return {const_data<int64_t>(kept_.emplace_back(torch::stable::contiguous(list.tensor(t)))), step, count};
  }

  // The memory of entry t of a list in the parameter's order; `written` is copied back at the end.
  void* in_order(const Handles& list, const View& view, size_t t, bool written) {
    const View& param = entries_[t].param;
    if (param.numel == 0 || (param.contiguous && view.contiguous) || view.has_strides_of(param)) return view.data;
    const Tensor order = dense_of(t), original = list.tensor(t);
    const Tensor& used = kept_.emplace_back(in_order_of(original, order));
    if (written) copies_.emplace_back(original, used);
    return used.mutable_data_ptr();
  }
  Tensor dense_of(size_t t) {
    for (const Dense& dense : dense_)
      if (dense.tensor.const_data_ptr() == entries_[t].param.data) return dense.tensor;
    return params_.tensor(t);
  }

  const char* op_;
  const Handles& params_;
  const Handles *grads_, *outs_, *ins_;
  const std::vector<int64_t>& groups_;
  std::vector<Entry> entries_;
  std::vector<ScalarType> dtypes_;
  std::vector<FreeRows> rows_;
  std::vector<RowChunk> chunks_;
  std::deque<Dense> dense_;  // of the parameters that are not contiguous
  std::deque<Tensor> kept_;
  std::vector<std::pair<Tensor, Tensor>> copies_;
};

// What is done to a gradient, in double; `used` is false where that is nothing.
struct Gradients {
  double scale = 1, norm = 0, max_norm = 0;
  bool clipped = false, maximize = false;

  Gradients(const char* op, bool maximize, const MaybeTensor& scale, const MaybeTensor& norm, double max_norm)
      : scale(value_or(op, "scale", scale, 1)),
        norm(value_or(op, "norm", norm, 0)),
        max_norm(max_norm),
        clipped(norm.has_value()),
        maximize(maximize) {}
  bool used() const { return scale != 1 || clipped || maximize; }
  template <typename C>
  Unscale<C> as() const {
    const C factor = clipped ? clip_factor(static_cast<C>(norm), static_cast<C>(max_norm)) : C(1);
    return {static_cast<C>(scale), maximize ? -factor : factor, {}};
  }
};

// Runs body<T, S>() for the dtypes of a parameter and of its state.
template <typename F>
void dispatch_state(const char* op, ScalarType param, bool wide, F&& body) {
  dispatch_float(param, op, [&]<typename T>() {
    if constexpr (std::is_same_v<T, compute_t<T>>)
      body.template operator()<T, T>();
    else
      wide ? body.template operator()<T, float>() : body.template operator()<T, T>();
  });
}

// --- ops ------------------------------------------------------------------------------------------------------------

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
void sgd_span(const SgdWork& work, const Gradients& gradients, int64_t at, int64_t count, const int32_t* hits) {
  using C = compute_t<T>;
  T* p = static_cast<T*>(work.p) + at;
  const T* g = static_cast<const T*>(work.g) + at;
  const Unscale<C> unscale = gradients.as<C>();
  const SgdFactors<C> f = work.as<C>();
  if (work.m == nullptr) return run_plain_sgd(p, g, hits, count, unscale, f, gradients.used());
  S* m = static_cast<S*>(work.m) + at;
  run_sgd(p, g, m, hits, count, unscale, f, gradients.used());
}

void sgd_update_cpu(const Handles& params, const Handles& grads, const Handles& momenta, const Handles& out_tasks,
                    const Handles& in_tasks, const std::vector<int64_t>& groups, bool exact, const Numbers& lr,
                    const Numbers& weight_decay, const Numbers& bounds, double momentum, double dampening,
                    bool nesterov, bool maximize, bool first, const MaybeTensor& rate, const MaybeTensor& scale,
                    const MaybeTensor& found_inf, const MaybeTensor& norm, double max_norm) {
  const char* op = "sgd_update_";
  Weights weights(op, params, grads, out_tasks, in_tasks, groups);
  weights.check_numbers("lr", lr);
  weights.check_numbers("weight_decay", weight_decay);
  weights.check_numbers("bounds", bounds);
  std::vector<View> buffers;
  if (!momenta.empty()) buffers = weights.state("momenta", momenta);
  const Gradients gradients(op, maximize, scale, norm, max_norm);
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
  weights.for_spans(kSgdGrain, [&](int64_t t, int64_t, int64_t at, int64_t count, const int32_t* hits) {
    dispatch_state(op, weights.dtype(t), works[t].wide, [&]<typename T, typename S>() {
      sgd_span<T, S>(works[t], gradients, at, count, hits);
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
void adam_span(const AdamWork& work, const Gradients& gradients, int64_t at, int64_t count, const int32_t* hits) {
  using C = compute_t<T>;
  run_adam(static_cast<T*>(work.p) + at, static_cast<const T*>(work.g) + at, static_cast<S*>(work.m) + at,
           static_cast<S*>(work.v) + at, hits, count, gradients.as<C>(), work.as<C>(), gradients.used());
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
                     const MaybeTensor& norm, double max_norm) {
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
  weights.for_spans(kAdamGrain, [&](int64_t t, int64_t, int64_t at, int64_t count, const int32_t* hits) {
    dispatch_state(op, weights.dtype(t), works[t].wide, [&]<typename T, typename S>() {
      adam_span<T, S>(works[t], gradients, at, count, hits);
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
  weights.for_spans(kSgdGrain, [&](int64_t t, int64_t chunk, int64_t at, int64_t count, const int32_t* hits) {
    dispatch_float(weights.dtype(t), op, [&]<typename T>() {
      sums[chunk] += run_squares(static_cast<const T*>(weights.param(t)) + at, hits, count, static_cast<compute_t<T>>(by));
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  Tensor norm = torch::stable::new_empty(grads.tensor(0), {}, compute_dtype(weights.dtype(0)));
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
