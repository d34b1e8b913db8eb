// Loops of one optimizer step over a span of memory, a copy of each for every instruction set. `hits` is null where
// nothing of the span is protected; else an element with hits is written back as it was.
#pragma once

#include "../steps.h"
#include "free_rows.h"

namespace maskcl {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// T: the parameters' and gradients' dtype, S: the state's.
#define MASKCL_STEPS(T, S, C)                                                                                      \
  void run_sgd(T* p, const T* g, S* m, const int32_t* hits, int64_t count, const Unscale<C>&, const SgdFactors<C>&, \
               bool scaled);                                                                                       \
  void run_adam(T* p, const T* g, S* m, S* v, const int32_t* hits, int64_t count, const Unscale<C>&,               \
                const AdamFactors<C>&, bool scaled);
MASKCL_STEPS(float, float, float)
MASKCL_STEPS(double, double, double)
MASKCL_STEPS(BFloat16, BFloat16, float)
MASKCL_STEPS(BFloat16, float, float)
MASKCL_STEPS(Half, Half, float)
MASKCL_STEPS(Half, float, float)
#undef MASKCL_STEPS

// Without momentum; and the sum of squares of g / scale.
#define MASKCL_PLAIN(T, C)                                                                            \
  void run_plain_sgd(T* p, const T* g, const int32_t* hits, int64_t count, const Unscale<C>&,         \
                     const SgdFactors<C>&, bool scaled);                                              \
  double run_squares(const T* g, const int32_t* hits, int64_t count, C scale);
MASKCL_PLAIN(float, float)
MASKCL_PLAIN(double, double)
MASKCL_PLAIN(BFloat16, float)
MASKCL_PLAIN(Half, float)
#undef MASKCL_PLAIN

}  // namespace maskcl
