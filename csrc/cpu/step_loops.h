// Loops of one optimizer step over spans of memory, a copy of each for every instruction set. In a mixed span an element
// with hits is written back as it was.
#pragma once

#include "../steps.h"
#include "free_rows.h"

namespace maskcl {

using torch::headeronly::Half;

// T: the parameters' and gradients' dtype, S: the state's.
#define MASKCL_STEPS(T, S, C)                                                                            \
  void run_sgd(T* p, const T* g, S* m, const Spans& spans, const Unscale<C>&, const SgdFactors<C>&,      \
               bool scaled);                                                                             \
  void run_adam(T* p, const T* g, S* m, S* v, const Spans& spans, const Unscale<C>&,                     \
                const AdamFactors<C>&, bool scaled);
MASKCL_STEPS(float, float, float)
MASKCL_STEPS(double, double, double)
MASKCL_STEPS(BFloat16, BFloat16, float)
MASKCL_STEPS(BFloat16, float, float)
MASKCL_STEPS(Half, Half, float)
MASKCL_STEPS(Half, float, float)
#undef MASKCL_STEPS

// Without momentum; and the sum of squares of g / scale.
#define MASKCL_PLAIN(T, C)                                                                                \
  void run_plain_sgd(T* p, const T* g, const Spans& spans, const Unscale<C>&, const SgdFactors<C>&,       \
                     bool scaled);                                                                        \
  double run_squares(const T* g, const Spans& spans, C scale);
MASKCL_PLAIN(float, float)
MASKCL_PLAIN(double, double)
MASKCL_PLAIN(BFloat16, float)
MASKCL_PLAIN(Half, float)
#undef MASKCL_PLAIN

// Of one span from 0 on, rounded by random bits, of each element 64.
#define MASKCL_RANDOM(S)                                                                                  \
  void run_sgd(BFloat16* p, const BFloat16* g, S* m, const Spans& spans, const Unscale<float>&,           \
               const SgdFactors<float>&, const uint64_t* random);                                         \
  void run_adam(BFloat16* p, const BFloat16* g, S* m, S* v, const Spans& spans, const Unscale<float>&,    \
                const AdamFactors<float>&, const uint64_t* random);
MASKCL_RANDOM(BFloat16)
MASKCL_RANDOM(float)
#undef MASKCL_RANDOM
void run_plain_sgd(BFloat16* p, const BFloat16* g, const Spans& spans, const Unscale<float>&,
                   const SgdFactors<float>&, const uint64_t* random);

// to[i] gets the random bits of counter first + i.
void fill_random(uint64_t* to, int64_t count, uint64_t key, uint64_t first);

}  // namespace maskcl
