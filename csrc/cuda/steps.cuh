// What the kernels of an optimizer's step share: scalars that may be on the device, a parameter as a kernel is given it,
// and the elements of a warp's segment that are not protected.
#pragma once

#include "../steps.h"
#include "unit_rows.cuh"

namespace maskcl::gpu {

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

// How bfloat16 is rounded where that is by random bits.
struct Rounding {
  Number draw;
  int64_t seed;

  __device__ uint64_t key() const { return step_key(seed, draw.get()); }
};

// One parameter. m and v are its state: of float32 where `wide`, else of its dtype.
struct Moved : Entry {
  const void* grad;
  void *m, *v;
  const double* known;  // Adam: step size, root and kept share, where they come from the device
  double lr, weight_decay, bound;
  double step_size, root, kept;
  int64_t place;  // the number of its first element, of which its random bits follow
  bool wide;

  // The number of the element at a position of a row, in the order of indices.
  __device__ uint64_t counter(int64_t row, int64_t position) const {
    const int64_t logical = channels_last ? position % columns * inner + position / columns : position;
    return static_cast<uint64_t>(place + row * width() + logical);
  }
};

// What a kernel takes besides its table, at most.
constexpr size_t kStepParameters = 256;

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

// --- host -----------------------------------------------------------------------------------------------------------

using Tensors = std::vector<Tensor>;
using Numbers = std::vector<double>;
using MaybeTensor = std::optional<Tensor>;

// `kept` holds a converted copy until the launch.
inline Number number_of(const char* op, const char* name, const MaybeTensor& value, double otherwise, const Tensor& like,
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

inline Gradients gradients_of(const char* op, bool maximize, const MaybeTensor& scale, const MaybeTensor& found_inf,
                       const MaybeTensor& norm, double max_norm, const Tensor& like, Tensors& kept) {
  return {number_of(op, "scale", scale, 1, like, kept),
          number_of(op, "norm", norm, 0, like, kept),
          number_of(op, "found_inf", found_inf, 0, like, kept),
          max_norm,
          scale.has_value(),
          norm.has_value(),
          maximize};
}

// The numbers of each parameter, all of one length; places where there is a draw.
struct Pace {
  const Numbers &lr, &weight_decay, &bounds;
  const std::vector<int64_t>* places = nullptr;

  void check(const List& list) const {
    list.check_length("lr", lr.size());
    list.check_length("weight_decay", weight_decay.size());
    list.check_length("bounds", bounds.size());
    if (places) list.check_length("places", places->size());
  }
};

// Calls launch<true>() for bfloat16 that is rounded at random, launch<false>() for all else.
template <typename T, typename F>
void for_rounding(bool random, F&& launch) {
  if constexpr (std::is_same_v<T, BFloat16>)
    if (random) return launch.template operator()<true>();
  launch.template operator()<false>();
}

inline void check_state(const char* op, const char* name, size_t t, const Tensor& state, const Tensor& param) {
  check_shape(op, entry_name(name, t).c_str(), state, param, "the parameter");
  const ScalarType found = state.scalar_type(), wanted = param.scalar_type(), wide = compute_dtype(wanted);
  MASKCL_CHECK(found == wanted || found == wide, op, ": ", name, "[", t, "] is ", torch::headeronly::toString(found),
               ", wanted ", torch::headeronly::toString(wanted), wide == wanted ? "" : " or ",
               wide == wanted ? "" : torch::headeronly::toString(wide));
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

inline Moved moved(List& list, size_t t, const Tensor& grad, const Tensors& out_tasks, const Tensors& in_tasks,
                   const Pace& pace) {
  Moved e{};
  static_cast<Entry&>(e) = list.entry(t);
  list.tasks(e, out_tasks, in_tasks);
  lay_flat(e, list.element_size(t));
  e.grad = list.beside(e, "grads", grad, false);
  e.lr = pace.lr[t];
  e.weight_decay = pace.weight_decay[t];
  e.bound = pace.bounds[t];
  e.place = pace.places ? (*pace.places)[t] : 0;
  return e;
}

}  // namespace maskcl::gpu
