// What an optimizer's step does to the elements of a span, and what of a row is protected.

#include "step_loops.h"

namespace maskcl {

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

// --- loops ----------------------------------------------------------------------------------------------------------

namespace {

// T: the parameters' and gradients' dtype, S: the state's. Where `Mixed` an element with hits is written back as it was.
template <bool Scaled, bool Mixed, bool Momentum, bool Random = false, typename T, typename S, typename C>
MASKCL_INLINE void sgd_loop(T* p, const T* g, S* m, const int32_t* hits, int64_t count, Unscale<C> unscale,
                            SgdFactors<C> f, const uint64_t* random = nullptr) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) {
    const T p_before = p[i];
    const uint64_t bits = Random ? random[i] : 0;
    C grad = static_cast<C>(g[i]), param = static_cast<C>(p_before), buffer = C(0);
    if constexpr (Scaled) grad = unscale(grad);
    if constexpr (Momentum) {
      const S m_before = m[i];
      buffer = static_cast<C>(m_before);
      sgd_step<true>(f, grad, param, buffer);
      const S m_after = rounded<Random, S>(buffer, bits, kFirstBits);
      m[i] = Mixed && hits[i] != 0 ? m_before : m_after;
    } else {
      sgd_step<false>(f, grad, param, buffer);
    }
    const T p_after = rounded<Random, T>(param, bits, kParamBits);
    p[i] = Mixed && hits[i] != 0 ? p_before : p_after;
  }
}

template <bool Scaled, bool Mixed, bool Random = false, typename T, typename S, typename C>
MASKCL_INLINE void adam_loop(T* p, const T* g, S* m, S* v, const int32_t* hits, int64_t count, Unscale<C> unscale,
                             AdamFactors<C> f, const uint64_t* random = nullptr) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) {
    const T p_before = p[i];
    const S m_before = m[i], v_before = v[i];
    const uint64_t bits = Random ? random[i] : 0;
    C grad = static_cast<C>(g[i]);
    C param = static_cast<C>(p_before), first = static_cast<C>(m_before), second = static_cast<C>(v_before);
    if constexpr (Scaled) grad = unscale(grad);
    adam_step(f, grad, param, first, second);
    const T p_after = rounded<Random, T>(param, bits, kParamBits);
    const S m_after = rounded<Random, S>(first, bits, kFirstBits);
    const S v_after = rounded<Random, S>(second, bits, kSecondBits);
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

}  // namespace

// Cloned functions cannot be templates.
#define MASKCL_STEPS(T, S, C)                                                                                       \
  MASKCL_NARROW_CLONES void run_sgd(T* p, const T* g, S* m, const int32_t* hits, int64_t count, const Unscale<C>& unscale, \
                             const SgdFactors<C>& f, bool scaled) {                                                 \
    if (scaled)                                                                                                     \
      hits ? sgd_loop<true, true, true>(p, g, m, hits, count, unscale, f)                                           \
           : sgd_loop<true, false, true>(p, g, m, hits, count, unscale, f);                                         \
    else                                                                                                            \
      hits ? sgd_loop<false, true, true>(p, g, m, hits, count, unscale, f)                                          \
           : sgd_loop<false, false, true>(p, g, m, hits, count, unscale, f);                                        \
  }                                                                                                                 \
  MASKCL_NARROW_CLONES void run_adam(T* p, const T* g, S* m, S* v, const int32_t* hits, int64_t count,                     \
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
  MASKCL_NARROW_CLONES void run_plain_sgd(T* p, const T* g, const int32_t* hits, int64_t count, const Unscale<C>& unscale,  \
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

#define MASKCL_RANDOM(S)                                                                                            \
  MASKCL_NARROW_CLONES void run_sgd(BFloat16* p, const BFloat16* g, S* m, const int32_t* hits, int64_t count,       \
                                    const Unscale<float>& unscale, const SgdFactors<float>& f,                      \
                                    const uint64_t* random) {                                                       \
    hits ? sgd_loop<true, true, true, true>(p, g, m, hits, count, unscale, f, random)                               \
         : sgd_loop<true, false, true, true>(p, g, m, hits, count, unscale, f, random);                             \
  }                                                                                                                 \
  MASKCL_NARROW_CLONES void run_adam(BFloat16* p, const BFloat16* g, S* m, S* v, const int32_t* hits, int64_t count, \
                                     const Unscale<float>& unscale, const AdamFactors<float>& f,                    \
                                     const uint64_t* random) {                                                      \
    hits ? adam_loop<true, true, true>(p, g, m, v, hits, count, unscale, f, random)                                 \
         : adam_loop<true, false, true>(p, g, m, v, hits, count, unscale, f, random);                               \
  }
MASKCL_RANDOM(BFloat16)
MASKCL_RANDOM(float)

MASKCL_NARROW_CLONES void run_plain_sgd(BFloat16* p, const BFloat16* g, const int32_t* hits, int64_t count,
                                        const Unscale<float>& unscale, const SgdFactors<float>& f,
                                        const uint64_t* random) {
  BFloat16* none = nullptr;
  hits ? sgd_loop<true, true, false, true>(p, g, none, hits, count, unscale, f, random)
       : sgd_loop<true, false, false, true>(p, g, none, hits, count, unscale, f, random);
}

MASKCL_CLONES void fill_random(uint64_t* to, int64_t count, uint64_t key, uint64_t first) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) to[i] = random_bits(key, first + static_cast<uint64_t>(i));
}

}  // namespace maskcl
