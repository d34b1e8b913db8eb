// Elementary functions for host and device; in float32 they are no calls, so that loops over them vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MASKCL_HD __host__ __device__ __forceinline__
#else
#define MASKCL_HD inline __attribute__((always_inline))
#endif

namespace maskcl {

// exp in float32 by range reduction and a polynomial (Cephes' coefficients): no call, so loops over it vectorise, and
// host and device round alike. At most 2 ulp; 0 below -104, infinity above 89, gradual underflow between, NaN kept.
MASKCL_HD float exp_(float x) {
  // Written so that NaN becomes -105 here: it must not reach the conversion to an integer below.
  const float above = x > -105.0f ? x : -105.0f, clipped = above < 89.0f ? above : 89.0f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = clipped * 1.44269504088896341f + magic;
  const float n = shifted - magic;
  const float r = (clipped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, so that results below 2^-126 come out as subnormals
  const int32_t k = static_cast<int32_t>(n), half = k / 2;
  const int32_t bits1 = (half + 127) * (1 << 23), bits2 = (k - half + 127) * (1 << 23);
  float scale1, scale2;
  memcpy(&scale1, &bits1, 4);
  memcpy(&scale2, &bits2, 4);
  const float y = p * scale1 * scale2;
  return x != x ? x : y;
}
MASKCL_HD double exp_(double x) { return ::exp(x); }

MASKCL_HD float abs_(float x) { return ::fabsf(x); }
MASKCL_HD double abs_(double x) { return ::fabs(x); }

MASKCL_HD float sqrt_(float x) { return ::sqrtf(x); }
MASKCL_HD double sqrt_(double x) { return ::sqrt(x); }

template <typename T>
MASKCL_HD T sigmoid(T x) {
  const T t = exp_(-abs_(x));
  return (x >= T(0) ? T(1) : t) / (T(1) + t);
}

// sigmoid'(x) without the cancellation of m (1 - m)
template <typename T>
MASKCL_HD T sigmoid_slope(T x) {
  const T t = exp_(-abs_(x));
  const T p = t / (T(1) + t);
  return p * (T(1) - p);
}

MASKCL_HD float tanh_(float x) {
  const float a = abs_(x), t = exp_(-2.0f * a);
  const float large = (1.0f - t) / (1.0f + t);
  const float s = x * x;  // near 0 the quotient cancels: odd series instead
  const float small = a * (1.0f + s * (-0.33333333f + s * (0.13333333f + s * (-0.053968254f + s * 0.021869489f))));
  const float y = a < 0.3f ? small : large;
  return x < 0.0f ? -y : y;
}
MASKCL_HD double tanh_(double x) { return ::tanh(x); }

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7; e is exp(-x^2), which gelu's derivative needs as well
MASKCL_HD float erf_with_exp(float x, float e) {
  const float a = abs_(x), t = 1.0f / (1.0f + 0.3275911f * a);
  const float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float y = 1.0f - p * e;
  return x < 0.0f ? -y : y;
}
MASKCL_HD double erf_with_exp(double x, double) { return ::erf(x); }

template <typename T>
MASKCL_HD T erf_(T x) {
  return erf_with_exp(x, exp_(-x * x));
}

}  // namespace maskcl
