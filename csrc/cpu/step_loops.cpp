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

// What is written where an element may be protected. By its bits: of a choice the compiler makes stores under a mask, of
// which each takes an AMD core some twenty instructions.
template <bool Mixed, typename T>
MASKCL_INLINE T kept(const int32_t* hits, int64_t i, T before, T after) {
  if constexpr (!Mixed) {
    return after;
  } else {
    using U = typename BitsOf<sizeof(T)>::type;
    U old, fresh;
    memcpy(&old, &before, sizeof(T));
    memcpy(&fresh, &after, sizeof(T));
    const U keep = static_cast<U>(U(0) - static_cast<U>(hits[i] != 0));
    fresh = static_cast<U>((old & keep) | (fresh & ~keep));
    memcpy(&after, &fresh, sizeof(T));
    return after;
  }
}

// T: the parameters' and gradients' dtype, S: the state's. Where `Mixed` an element with hits is written back as it was.
template <bool Scaled, bool Mixed, bool Momentum, bool Random = false, typename T, typename S, typename C>
MASKCL_INLINE void sgd_loop(T* p, const T* g, S* m, const int32_t* hits, int64_t count, Unscale<C> unscale,
                            SgdFactors<C> f, const uint64_t* random = nullptr) {
  MASKCL_VECTORIZE
  MASKCL_PRAGMA(GCC unroll 1)  // more bodies at once do not fit the registers
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
      m[i] = kept<Mixed>(hits, i, m_before, m_after);
    } else {
      sgd_step<false>(f, grad, param, buffer);
    }
    const T p_after = rounded<Random, T>(param, bits, kParamBits);
    p[i] = kept<Mixed>(hits, i, p_before, p_after);
  }
}

template <bool Scaled, bool Mixed, bool Random = false, typename T, typename S, typename C>
MASKCL_INLINE void adam_loop(T* p, const T* g, S* m, S* v, const int32_t* hits, int64_t count, Unscale<C> unscale,
                             AdamFactors<C> f, const uint64_t* random = nullptr) {
  MASKCL_VECTORIZE
  MASKCL_PRAGMA(GCC unroll 1)  // more bodies at once do not fit the registers
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
    p[i] = kept<Mixed>(hits, i, p_before, p_after);
    m[i] = kept<Mixed>(hits, i, m_before, m_after);
    v[i] = kept<Mixed>(hits, i, v_before, v_after);
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

// One run of each array into the cache.
template <typename... P>
MASKCL_INLINE void fetch(int64_t at, const P*... arrays) {
  (__builtin_prefetch(arrays + at), ...);
}

constexpr int64_t kAhead = 8 * kRun;  // elements; of 4, 6, 8, 12, 16 and 24 runs

// Calls body<Mixed>(begin, count, hits) for what the spans hold. Where their memory is far each run comes by itself, and with
// it, and with those that are left out, one further on is fetched: what is short and scattered no hardware fetches in
// advance, and fetched many runs at once, or without the gaps, or without the free rows between, it is slower than all of
// it in a row. The loops that only fetch are written out: of a function that does nothing else GCC drops the calls.
template <typename F, typename... P>
MASKCL_INLINE void for_each(const Spans& spans, const F& body, const P*... arrays) {
  const int64_t first = spans.far ? std::min(kAhead, spans.length) : 0, end = spans.far ? spans.length : 0;
  for (int64_t at = 0; at < first; at += kRun) fetch(at, arrays...);
  int64_t at = 0;
  const auto go = [&]<bool Mixed>(int64_t until) __attribute__((always_inline)) {
    for (; spans.far && at + kRun <= until; at += kRun) {
      fetch(at + kAhead, arrays...);
      body.template operator()<Mixed>(at, kRun, Mixed ? spans.hits + at : nullptr);
    }
    if (at < until) body.template operator()<Mixed>(at, until - at, Mixed ? spans.hits + at : nullptr);
    at = until;
  };
  for (int64_t n = 0; n < spans.count; ++n) {
    const Span& span = spans.spans[n];
    for (; spans.far && at < span.begin; at += kRun) fetch(at + kAhead, arrays...);
    at = span.begin;
    if (span.mixed)
      go.template operator()<true>(span.end);
    else
      go.template operator()<false>(span.end);
  }
  for (; at < end; at += kRun) fetch(at + kAhead, arrays...);
}

template <bool Scaled, bool Random = false, typename T, typename S, typename C>
MASKCL_INLINE void sgd_spans(T* p, const T* g, S* m, const Spans& spans, Unscale<C> unscale,
                             SgdFactors<C> f, const uint64_t* random = nullptr) {
  const auto step = [&]<bool Mixed>(int64_t at, int64_t count, const int32_t* hits) __attribute__((always_inline)) {
    sgd_loop<Scaled, Mixed, true, Random>(p + at, g + at, m + at, hits, count, unscale, f, random);
  };
  for_each(spans, step, p, g, m);
}

template <bool Scaled, bool Random = false, typename T, typename C>
MASKCL_INLINE void plain_sgd_spans(T* p, const T* g, const Spans& spans, Unscale<C> unscale,
                                   SgdFactors<C> f, const uint64_t* random = nullptr) {
  T* none = nullptr;
  const auto step = [&]<bool Mixed>(int64_t at, int64_t count, const int32_t* hits) __attribute__((always_inline)) {
    sgd_loop<Scaled, Mixed, false, Random>(p + at, g + at, none, hits, count, unscale, f, random);
  };
  for_each(spans, step, p, g);
}

template <bool Scaled, bool Random = false, typename T, typename S, typename C>
MASKCL_INLINE void adam_spans(T* p, const T* g, S* m, S* v, const Spans& spans, Unscale<C> unscale,
                              AdamFactors<C> f, const uint64_t* random = nullptr) {
  const auto step = [&]<bool Mixed>(int64_t at, int64_t count, const int32_t* hits) __attribute__((always_inline)) {
    adam_loop<Scaled, Mixed, Random>(p + at, g + at, m + at, v + at, hits, count, unscale, f, random);
  };
  for_each(spans, step, p, g, m, v);
}

}  // namespace

// Cloned functions cannot be templates.
#define MASKCL_STEPS(T, S, C)                                                                              \
  MASKCL_NARROW_CLONES void run_sgd(T* p, const T* g, S* m, const Spans& spans, const Unscale<C>& unscale, \
                                    const SgdFactors<C>& f, bool scaled) {                                 \
    scaled ? sgd_spans<true>(p, g, m, spans, unscale, f) : sgd_spans<false>(p, g, m, spans, unscale, f);   \
  }                                                                                                        \
  MASKCL_NARROW_CLONES void run_adam(T* p, const T* g, S* m, S* v, const Spans& spans,                     \
                                     const Unscale<C>& unscale, const AdamFactors<C>& f, bool scaled) {    \
    scaled ? adam_spans<true>(p, g, m, v, spans, unscale, f)                                               \
           : adam_spans<false>(p, g, m, v, spans, unscale, f);                                             \
  }
MASKCL_STEPS(float, float, float)
MASKCL_STEPS(double, double, double)
MASKCL_STEPS(BFloat16, BFloat16, float)
MASKCL_STEPS(BFloat16, float, float)
MASKCL_STEPS(Half, Half, float)
MASKCL_STEPS(Half, float, float)

#define MASKCL_PLAIN(T, C)                                                                                    \
  MASKCL_NARROW_CLONES void run_plain_sgd(T* p, const T* g, const Spans& spans, const Unscale<C>& unscale,    \
                                          const SgdFactors<C>& f, bool scaled) {                              \
    scaled ? plain_sgd_spans<true>(p, g, spans, unscale, f) : plain_sgd_spans<false>(p, g, spans, unscale, f); \
  }                                                                                                           \
  MASKCL_CLONES double run_squares(const T* g, const Spans& spans, C scale) {                                 \
    double sum = 0;                                                                                           \
    const auto add = [&]<bool Mixed>(int64_t at, int64_t count, const int32_t* hits)                          \
        __attribute__((always_inline)) { sum += square_loop<Mixed>(g + at, hits, count, scale); };            \
    for_each(spans, add, g);                                                                                  \
    return sum;                                                                                               \
  }
MASKCL_PLAIN(float, float)
MASKCL_PLAIN(double, double)
MASKCL_PLAIN(BFloat16, float)
MASKCL_PLAIN(Half, float)

#define MASKCL_RANDOM(S)                                                                                      \
  MASKCL_NARROW_CLONES void run_sgd(BFloat16* p, const BFloat16* g, S* m, const Spans& spans,                 \
                                    const Unscale<float>& unscale, const SgdFactors<float>& f,                \
                                    const uint64_t* random) {                                                 \
    sgd_spans<true, true>(p, g, m, spans, unscale, f, random);                                                \
  }                                                                                                           \
  MASKCL_NARROW_CLONES void run_adam(BFloat16* p, const BFloat16* g, S* m, S* v, const Spans& spans,          \
                                     const Unscale<float>& unscale, const AdamFactors<float>& f,              \
                                     const uint64_t* random) {                                                \
    adam_spans<true, true>(p, g, m, v, spans, unscale, f, random);                                            \
  }
MASKCL_RANDOM(BFloat16)
MASKCL_RANDOM(float)

MASKCL_NARROW_CLONES void run_plain_sgd(BFloat16* p, const BFloat16* g, const Spans& spans,
                                        const Unscale<float>& unscale, const SgdFactors<float>& f,
                                        const uint64_t* random) {
  plain_sgd_spans<true, true>(p, g, spans, unscale, f, random);
}

MASKCL_CLONES void fill_random(uint64_t* to, int64_t count, uint64_t key, uint64_t first) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) to[i] = random_bits(key, first + static_cast<uint64_t>(i));
}

}  // namespace maskcl
