// The list of an optimizer's step on the CPU: parameters, gradients, state and sides, checked and laid out, and the
// scalars that are read on the host.
#pragma once

#include <deque>

#include "../handles.h"
#include "../steps.h"
#include "free_rows.h"
#include "step_loops.h"

namespace maskcl {

using Numbers = std::vector<double>;
using MaybeTensor = std::optional<Tensor>;

inline double value_of(const char* op, const char* name, const Tensor& t) {
  check_one(op, name, t);
  if (t.scalar_type() == ScalarType::Float) return *const_data<float>(t);
  return *const_data<double>(to_dtype(t, ScalarType::Double));
}

inline double value_or(const char* op, const char* name, const MaybeTensor& t, double otherwise) {
  return t ? value_of(op, name, *t) : otherwise;
}

// Elements a thread must have: Adam's cost several times what a copied one does.
constexpr int64_t kSgdGrain = 32768, kAdamGrain = 16384;

// The list of parameters with their gradients and sides, checked, in the memory order of the parameters. Without sides,
// which are empty lists then, nothing is protected.
class Weights {
 public:
  Weights(const char* op, const Handles& params, const Handles& grads, const Handles& out_tasks,
          const Handles& in_tasks, const std::vector<int64_t>& groups)
      : op_(op), params_(params), groups_(groups) {
    check_length(op, "grads", grads.size(), size());
    const bool sided = !out_tasks.empty() || !in_tasks.empty();
    if (sided) check_length(op, "out_tasks", out_tasks.size(), size());
    if (sided) check_length(op, "in_tasks", in_tasks.size(), size());
    check_length(op, "groups", groups.size(), size());
    entries_.reserve(size());
    for (size_t t = 0; t < size(); ++t) {
      Entry& e = entries_.emplace_back(View(params[t]), View(grads[t]), no_tasks(), no_tasks());
      if (sided) e.out = View(out_tasks[t]), e.in = View(in_tasks[t]);
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
                   torch::headeronly::toString(dtype(t)), wide == dtype(t) ? "" : " or ",
                   wide == dtype(t) ? "" : torch::headeronly::toString(wide));
    }
    return views;
  }

  // Lays the weights out; what param() and the like return is valid until finish().
  void prepare(bool exact) {
    rows_.reserve(size());
    orders_.resize(size());
    for (size_t t = 0; t < size(); ++t) {
      Entry& e = entries_[t];
      Rows layout{e.rows(), e.columns(), e.param.numel / std::max<int64_t>(e.rows(), 1), groups_[t], {}};
      if (!e.param.contiguous && e.param.numel > 0) {
        Dense& dense = dense_.emplace_back(params_.tensor(t), groups_[t], false);
        layout = dense.rows;
        if (!layout.order.empty()) orders_[t] = order_in_memory(dense.tensor, layout.width);
        e.param = View(dense.tensor.get());
      }
      rows_.emplace_back(layout, words(e.out, *outs_, t), words(e.in, *ins_, t), exact);
      add_chunks(rows_[t], t, chunks_);
    }
  }
  void* param(size_t t) const { return entries_[t].param.data; }
  // Of each place in the memory of a row, which element of it that is; empty where these are the same.
  const std::vector<int64_t>& order(size_t t) const { return orders_[t]; }
  const void* grad(size_t t) { return in_order(*grads_, entries_[t].grad, t, false); }
  void* state(const Handles& list, const View& view, size_t t) { return in_order(list, view, t, true); }

  // Calls body(t, chunk, offset, spans) for all that is not protected.
  template <typename F>
  void for_spans(int64_t grain, const F& body) {
    for_chunks(chunks_, grain, [&](const RowChunk& chunk, int64_t index, FreeRows::Found& found) {
      rows_[chunk.weight].for_spans(chunk.begin, chunk.end, found, [&](int64_t offset, const Spans& spans) {
        body(chunk.weight, index, offset, spans);
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

  // A side of one unit without a word.
  static View no_tasks() {
    static constexpr int64_t sizes[] = {1, 0}, strides[] = {1, 1};
    static const int32_t words = aoti_torch_dtype_int64();
    View none;
    none.data = nullptr, none.sizes = sizes, none.strides = strides;
    none.dim = 2, none.numel = 0, none.dtype = words, none.contiguous = true;
    return none;
  }

  static std::vector<int64_t> order_in_memory(const Tensor& x, int64_t width) {
    std::vector<int64_t> order(width, 0);
    int64_t step = 1;
    for (int64_t d = x.dim() - 1; d > 0; step *= x.size(d--))
      for (int64_t place = 0; x.size(d) > 1 && place < width; ++place)
        order[place] += place / x.stride(d) % x.size(d) * step;
    return order;
  }

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
  std::vector<std::vector<int64_t>> orders_;
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

// How bfloat16 is rounded: to nearest, or by the random bits of a key.
class Rounding {
 public:
  Rounding(const char* op, const MaybeTensor& draw, int64_t seed, const std::vector<int64_t>& places, size_t count)
      : random_(draw.has_value()), key_(step_key(seed, value_or(op, "draw", draw, 0))), places_(places) {
    if (random_) check_length(op, "places", places.size(), count);
  }

  bool is_random() const { return random_; }

  // Calls body(offset, count, bits) for pieces of a span of parameter t that begins at element `at` of its memory.
  template <typename F>
  void for_pieces(const Weights& weights, int64_t t, int64_t at, int64_t count, const F& body) const {
    const std::vector<int64_t>& order = weights.order(t);
    const int64_t width = static_cast<int64_t>(order.size());
    uint64_t bits[kPiece];
    for (int64_t begin = 0; begin < count; begin += kPiece) {
      const int64_t end = std::min(begin + kPiece, count);
      if (width == 0)
        fill_random(bits, end - begin, key_, places_[t] + at + begin);
      else
        for (int64_t i = begin; i < end; ++i)
          bits[i - begin] = random_bits(key_, places_[t] + (at + i) / width * width + order[(at + i) % width]);
      body(begin, end - begin, bits);
    }
  }

 private:
  static constexpr int64_t kPiece = 512;  // 4 KB of bits

  bool random_;
  uint64_t key_;
  const std::vector<int64_t>& places_;
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

}  // namespace maskcl
