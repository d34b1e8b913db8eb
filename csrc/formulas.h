// Every scalar formula once, for the CPU and the CUDA kernels alike: what the CPU tests prove is what the GPU computes.
// The specification, with the equations' sources, is maskcl/reference; names are the same here.
#pragma once

#include "elementary.h"

namespace maskcl {

enum class Activation { identity, relu, gelu, gelu_tanh, silu, tanh, sigmoid, leaky_relu };
enum class Rule { hat, constant, adahat, random };
enum class Aggregation { min, max, mean };
enum class Levels { binary, binary_inclusive, ternary, ternary_symmetric, topk, soft };

// --- gate -----------------------------------------------------------------------------------------------------------

// sigmoid(s e), and 0 where that is below `floor`.
template <typename T>
MASKCL_HD T hat_gate(T e, T s, T floor) {
  const T m = sigmoid(s * e);
  return m < floor ? T(0) : m;
}

// cosh(x) + 1 for the recipe, whose argument is clipped by its caller
template <typename T>
MASKCL_HD T cosh_plus_one(T x) {
  const T t = exp_(abs_(x));
  return T(0.5) * (t + T(1) / t) + T(1);
}

enum class Compensating { none_exact, none_recipe, exact, recipe };

MASKCL_HD Compensating compensating(double max_scale, bool recipe) {
  if (max_scale > 0) return recipe ? Compensating::recipe : Compensating::exact;
  return recipe ? Compensating::none_recipe : Compensating::none_exact;
}

// tail_k is 1 + exp(-cosh_clamp).
template <Compensating How, typename T>
MASKCL_HD T hat_gate_backward(T g, T e, T m, T s, T max_scale, T cosh_clamp, T tail_k) {
  const T x = s * e;
  if constexpr (How == Compensating::none_exact) return g * s * sigmoid_slope(x);
  if constexpr (How == Compensating::exact) {
    const T beyond = abs_(x) > cosh_clamp ? abs_(x) : cosh_clamp;
    const T tail = tail_k / (T(1) + exp_(-beyond));
    return g * max_scale * sigmoid_slope(e) * (exp_(cosh_clamp - beyond) * (tail * tail));
  }
  const T q = g * s * (m * (T(1) - m));
  if constexpr (How == Compensating::none_recipe) return q;
  const T clipped = x < -cosh_clamp ? -cosh_clamp : (x > cosh_clamp ? cosh_clamp : x);
  return q * (max_scale / s) * (cosh_plus_one(clipped) / cosh_plus_one(e));
}

template <typename T>
MASKCL_HD T hat_gate_backward(T g, T e, T m, T s, T max_scale, T cosh_clamp, T tail_k, Compensating how) {
  switch (how) {
    case Compensating::none_exact:
      return hat_gate_backward<Compensating::none_exact>(g, e, m, s, max_scale, cosh_clamp, tail_k);
    case Compensating::none_recipe:
      return hat_gate_backward<Compensating::none_recipe>(g, e, m, s, max_scale, cosh_clamp, tail_k);
    case Compensating::exact:
      return hat_gate_backward<Compensating::exact>(g, e, m, s, max_scale, cosh_clamp, tail_k);
    default:
      return hat_gate_backward<Compensating::recipe>(g, e, m, s, max_scale, cosh_clamp, tail_k);
  }
}

// --- activations ----------------------------------------------------------------------------------------------------

template <Activation A, typename T>
MASKCL_HD T activate(T x, T slope) {
  constexpr double tanh_scale = 0.79788456080286535588, cubic = 0.044715;
  if constexpr (A == Activation::relu) return x < T(0) ? T(0) : x;  // NaN stays
  if constexpr (A == Activation::gelu) return T(0.5) * x * (T(1) + erf_(x * T(0.70710678118654752440)));
  if constexpr (A == Activation::gelu_tanh)
    return T(0.5) * x * (T(1) + tanh_(T(tanh_scale) * (x + T(cubic) * x * x * x)));
  if constexpr (A == Activation::silu) return x * sigmoid(x);
  if constexpr (A == Activation::tanh) return tanh_(x);
  if constexpr (A == Activation::sigmoid) return sigmoid(x);
  if constexpr (A == Activation::leaky_relu) return x > T(0) ? x : x * slope;
  return x;
}

// act' from a = act(x); only for activations that have it
template <Activation A, typename T>
MASKCL_HD T slope_from_output(T a, T slope) {
  if constexpr (A == Activation::relu) return a > T(0) ? T(1) : T(0);
  if constexpr (A == Activation::tanh) return T(1) - a * a;
  if constexpr (A == Activation::sigmoid) return a * (T(1) - a);
  if constexpr (A == Activation::leaky_relu) return a > T(0) ? T(1) : slope;
  return T(1);
}

// act(x) and act'(x) together: they share an exponential.
template <Activation A, typename T>
MASKCL_HD void activate_with_slope(T x, T slope, T* a, T* d) {
  constexpr double tanh_scale = 0.79788456080286535588, cubic = 0.044715;
  if constexpr (A == Activation::gelu) {
    const T e = exp_(T(-0.5) * x * x);
    const T cdf = T(0.5) * (T(1) + erf_with_exp(x * T(0.70710678118654752440), e));
    *a = x * cdf;
    *d = cdf + x * (e * T(0.39894228040143267794));
  } else if constexpr (A == Activation::gelu_tanh) {
    const T t = tanh_(T(tanh_scale) * (x + T(cubic) * x * x * x));
    const T inner = T(tanh_scale) * (T(1) + T(3 * cubic) * x * x);
    *a = T(0.5) * x * (T(1) + t);
    *d = T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * inner;
  } else if constexpr (A == Activation::silu) {
    const T p = sigmoid(x);
    *a = x * p;
    *d = p * (T(1) + x * (T(1) - p));
  } else {
    *a = activate<A>(x, slope);
    *d = slope_from_output<A>(*a, slope);
  }
}

// --- masked_forward -------------------------------------------------------------------------------------------------

// Whether act' can be had from act(x), so that y may be kept in place of x.
constexpr bool has_slope_from_output(Activation a) {
  return a != Activation::gelu && a != Activation::gelu_tanh && a != Activation::silu;
}

template <Activation A, typename T>
MASKCL_HD T masked_activation(T x, T b, T m, T slope) {
  return activate<A>(x + b, slope) * m;
}

// dz = g m act' and the summand of dmask. From the output y, relu, identity and leaky_relu sum g y, and the sum is
// divided by m once (see mask_grad); the others need act(x) = y / m here.
template <Activation A, typename T>
MASKCL_HD void masked_activation_backward_from_output(T g, T y, T m, T inverse_m, T slope, T* dz, T* da) {
  if constexpr (A == Activation::identity) {
    *dz = g * m;
    *da = g * y;
  } else if constexpr (A == Activation::relu) {
    *dz = y != T(0) ? g * m : T(0);
    *da = g * y;
  } else if constexpr (A == Activation::leaky_relu) {
    *dz = g * m * ((y > T(0)) == (m > T(0)) && y != T(0) ? T(1) : slope);
    *da = g * y;
  } else {
    const T a = y * inverse_m;
    *dz = g * m * slope_from_output<A>(a, slope);
    *da = g * a;
  }
}

constexpr bool divides_once(Activation a) {
  return a == Activation::identity || a == Activation::relu || a == Activation::leaky_relu;
}

// 1 / m to undo a mask; 0 where that is infinite, as for a closed gate: there m act' is 0 to every digit that counts.
MASKCL_HD float inverse_mask(float m) { return abs_(m) > 3.0e-39f ? 1.0f / m : 0.0f; }
MASKCL_HD double inverse_mask(double m) { return abs_(m) > 6.0e-309 ? 1.0 / m : 0.0; }

// The gradient of a unit's mask from the sum of the above; 0 where m is 0.
template <typename T>
MASKCL_HD T mask_grad(T sum, T m, bool divide) {
  return divide ? (m != T(0) ? sum / m : T(0)) : sum;
}

template <Activation A, typename T>
MASKCL_HD void masked_activation_backward_from_input(T g, T x, T b, T m, T slope, T* dz, T* da) {
  T a, d;
  activate_with_slope<A>(x + b, slope, &a, &d);
  *dz = g * m * d;
  *da = g * a;
}

// --- grad_clamp -----------------------------------------------------------------------------------------------------

MASKCL_HD int popcount(uint64_t x) {
  x = x - ((x >> 1) & 0x5555555555555555u);
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int>((x * 0x0101010101010101u) >> 56);
}

// Number of tasks that use a weight whose ends have these task sets of `words` words.
MASKCL_HD int users(const int64_t* out, const int64_t* in, int64_t words, bool exact) {
  int together = 0, outs = 0, ins = 0;
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t o = static_cast<uint64_t>(out[w]), i = static_cast<uint64_t>(in[w]);
    if (exact) {
      together += popcount(o & i);
    } else {
      outs += popcount(o);
      ins += popcount(i);
    }
  }
  return exact ? together : (outs < ins ? outs : ins);
}

// splitmix64's finaliser; and 64 bits for each counter of a key
MASKCL_HD uint64_t splitmix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
MASKCL_HD uint64_t random_bits(uint64_t key, uint64_t counter) {
  return splitmix(counter * 0x9E3779B97F4A7C15u + key);
}

// The upper 24 of the bits make a float in [0, 1).
MASKCL_HD float uniform(uint64_t seed, uint64_t tensor, uint64_t index) {
  return static_cast<float>(random_bits(seed, (tensor << 40) + index) >> 40) * 5.9604644775390625e-8f;
}

// The factor of a gradient whose weight n tasks use; rule hat writes 0 where n > 0 instead of multiplying.
template <typename T>
MASKCL_HD T clamp_factor(Rule rule, int n, T value, float random) {
  if (rule == Rule::adahat) return value / (static_cast<T>(n) + value);
  if (n == 0) return T(1);
  if (rule == Rule::constant) return value;
  return rule == Rule::random ? static_cast<T>(random) : T(0);
}

template <typename T>
MASKCL_HD T aggregate(Aggregation how, T a, T b) {
  if (how == Aggregation::min) return a < b || a != a ? a : b;  // NaN of either stays
  if (how == Aggregation::max) return a > b || a != a ? a : b;
  return (a + b) * T(0.5);
}

// --- weight_mask ----------------------------------------------------------------------------------------------------

// The level of a score, -1, 0 or 1; all but soft. NaN gives 0.
template <Levels L, typename T>
MASKCL_HD int level(T s, T threshold) {
  if constexpr (L == Levels::binary) return s > threshold;
  if constexpr (L == Levels::binary_inclusive) return s >= threshold;
  if constexpr (L == Levels::topk) return abs_(s) >= threshold;
  if constexpr (L == Levels::ternary) return s > threshold ? 1 : (s < T(0) ? -1 : 0);
  return s > threshold ? 1 : (s < -threshold ? -1 : 0);
}

template <Levels L, typename T>
MASKCL_HD T mask_value(T s, T threshold, T scale) {
  if constexpr (L == Levels::soft) return sigmoid(scale * (s - threshold));
  return static_cast<T>(level<L>(s, threshold));
}

// W m: a select, so that 0 is 0 whatever w is; soft multiplies.
template <Levels L, typename T, typename S>
MASKCL_HD T select_weight(T w, S s, S threshold, S scale) {
  if constexpr (L == Levels::soft) {
    const T m = static_cast<T>(mask_value<L>(s, threshold, scale));
    return m == T(0) ? T(0) : w * m;
  }
  const T on = level<L>(s, threshold) != 0 ? w : T(0);
  if constexpr (L == Levels::ternary || L == Levels::ternary_symmetric)
    return level<L>(s, threshold) < 0 ? -on : on;
  return on;
}

// What a score's gradient is multiplied by: 1 straight through, else the sigmoid's slope.
template <Levels L, typename T>
MASKCL_HD T score_slope(T s, T threshold, T scale) {
  if constexpr (L == Levels::soft) return scale * sigmoid_slope(scale * (s - threshold));
  return T(1);
}

// Keys of the same order as the values, NaN above all; the k-th of keys is the k-th of values.
MASKCL_HD uint32_t order_key(float x, bool magnitude) {
  if (x != x) return 0xffffffffu;
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (magnitude) return bits & 0x7fffffffu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

MASKCL_HD uint64_t order_key(double x, bool magnitude) {
  if (x != x) return ~uint64_t{0};
  uint64_t bits;
  memcpy(&bits, &x, 8);
  if (magnitude) return bits & ~(uint64_t{1} << 63);
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

MASKCL_HD float value_of_key(uint32_t key, bool magnitude) {
  uint32_t bits = magnitude ? key : (key & 0x80000000u ? key & 0x7fffffffu : ~key);
  if (key == 0xffffffffu) bits = 0x7fc00000u;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

MASKCL_HD double value_of_key(uint64_t key, bool magnitude) {
  uint64_t bits = magnitude ? key : (key >> 63 ? key & ~(uint64_t{1} << 63) : ~key);
  if (key == ~uint64_t{0}) bits = uint64_t{0x7ff8} << 48;
  double x;
  memcpy(&x, &bits, 8);
  return x;
}

// --- bitmask --------------------------------------------------------------------------------------------------------

// A weight's bit pattern where its bit is 1, turned in sign where `negative` is; 0 elsewhere. U is as wide as a weight.
template <typename U>
MASKCL_HD U select_bits(U weight, uint32_t on, uint32_t negative) {
  constexpr int sign = 8 * sizeof(U) - 1;
  return (weight ^ static_cast<U>(static_cast<U>(negative) << sign)) & static_cast<U>(U(0) - static_cast<U>(on));
}

// --- importance -----------------------------------------------------------------------------------------------------

// What a sample's gradient adds: |g| for MAS, g^2 for Fisher information.
template <bool Square, typename T>
MASKCL_HD T importance_size(T g) {
  return Square ? g * g : abs_(g);
}

// Half of the penalty's slope; times p - anchor it is the penalty itself.
template <typename T>
MASKCL_HD T penalty_pull(T omega, T p, T anchor) {
  return omega * (p - anchor);
}

}  // namespace maskcl
