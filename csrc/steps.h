// An optimizer's step of one element, for the CPU and the CUDA kernels alike; maskcl/reference/update.py specifies it.
//
// torch's fused kernels contract some products into fused multiply-adds: the same ones are fused here and no others, as
// where a sum nearly cancels that is more than the last bit.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include "formulas.h"

namespace maskcl {

// a b + c, fused where the processor can: a GPU always, the CPU's kernels in their clones for it.
#if defined(__CUDACC__)
MASKCL_HD float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
MASKCL_HD double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
#else
template <typename C>
MASKCL_HD C multiply_add(C a, C b, C c) {
  return a * b + c;
}
#endif

// 0, of which a compiler does not know that it is: a product whose bits go through it cannot be fused with a sum.
struct Apart {
  int32_t zero = 0;

  MASKCL_HD float product(float a, float b) const {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return through<int32_t>(a * b);
#endif
  }
  MASKCL_HD double product(double a, double b) const {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return through<int64_t>(a * b);
#endif
  }

 private:
  template <typename I, typename C>
  MASKCL_HD C through(C x) const {
    I bits;
    memcpy(&bits, &x, sizeof(x));
    bits |= zero;
    memcpy(&x, &bits, sizeof(x));
    return x;
  }
};

// What is done to every gradient before the step: g / scale * factor.
template <typename C>
struct Unscale {
  C scale, factor;
  Apart apart;

  MASKCL_HD C operator()(C g) const { return apart.product(g / scale, factor); }
};

// What torch.nn.utils.clip_grad_norm_ multiplies by, NaN where the norm is.
template <typename C>
MASKCL_HD C clip_factor(C norm, C max_norm) {
  const C factor = C(1) / (norm + C(1e-6)) * max_norm;
  return factor > C(1) ? C(1) : factor;
}

// NaN stays NaN. In this order of operands each is one instruction of a vector unit.
template <typename C>
MASKCL_HD C bounded(C p, C bound) {
  const C below = bound < p ? bound : p;
  return -bound > below ? -bound : below;
}

// --- rounding -------------------------------------------------------------------------------------------------------

using torch::headeronly::BFloat16;

// Which 16 of an element's random bits round what: see maskcl/reference/update.py.
constexpr int kParamBits = 48, kFirstBits = 32, kSecondBits = 16;

// The key of one draw of all numbers.
MASKCL_HD uint64_t step_key(int64_t seed, double draw) {
  return random_bits(static_cast<uint64_t>(seed), static_cast<uint64_t>(static_cast<int64_t>(draw)));
}

// x as T: to nearest, or where `Random` bfloat16 by 16 random bits, which carry into what stays. Infinity and NaN stay.
template <bool Random, typename T, typename C>
MASKCL_HD T rounded(C x, uint64_t random, int shift) {
  const T nearest = static_cast<T>(x);
  if constexpr (Random && std::is_same_v<T, BFloat16>) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(x));
    const uint32_t moved = (bits + (static_cast<uint32_t>(random >> shift) & 0xFFFFu)) >> 16;
    const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
    return BFloat16(static_cast<uint16_t>(finite ? moved : nearest.x), BFloat16::from_bits());
  }
  return nearest;
}

// --- SGD ------------------------------------------------------------------------------------------------------------

template <typename C>
struct SgdFactors {
  C lr, weight_decay, bound, momentum, undampened;
  bool nesterov;
  Apart apart;
};

// p and m are written; m is read and written only where `Momentum`.
template <bool Momentum, typename C>
MASKCL_HD void sgd_step(const SgdFactors<C>& f, C g, C& p, C& m) {
  g = f.weight_decay != C(0) ? multiply_add(p, f.weight_decay, g) : g;
  if constexpr (Momentum) {
    m = multiply_add(g, f.undampened, f.apart.product(m, f.momentum));
    g = f.nesterov ? multiply_add(m, f.momentum, g) : m;
  }
  p = bounded(multiply_add(g, -f.lr, p), f.bound);
}

// --- Adam -----------------------------------------------------------------------------------------------------------

// step_size is lr / (1 - beta1^step), root the square root of 1 - beta2^step; kept is 1 - lr decay where decoupled.
template <typename C>
struct AdamFactors {
  C step_size, root, kept, weight_decay, bound, beta2, eps, weight1, weight2;
  Apart apart;
};

template <typename C>
MASKCL_HD void adam_step(const AdamFactors<C>& f, C g, C& p, C& m, C& v) {
  g = f.weight_decay != C(0) ? multiply_add(p, f.weight_decay, g) : g;
  p = f.apart.product(p, f.kept);
  const bool small = f.weight1 < C(0.5);  // as torch.lerp has it
  m = multiply_add(small ? f.weight1 : f.weight1 - C(1), g - m, small ? m : g);
  v = multiply_add(f.weight2 * g, g, f.apart.product(v, f.beta2));
  const C denominator = sqrt_(v) / f.root + f.eps;
  p = bounded(p + -f.step_size * m / denominator, f.bound);
}

}  // namespace maskcl
