// How the CPU kernels use threads and vector units.
#pragma once

#include "common.h"

// One copy of a loop for each instruction set, chosen when the library is loaded; no -march, so one binary serves all.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MASKCL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 14)
#define MASKCL_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MASKCL_CLONES
#endif

#define MASKCL_INLINE inline __attribute__((always_inline))

// The iterations of the next loop do not depend on each other, even where it works in place.
#if defined(__clang__)
#define MASKCL_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define MASKCL_VECTORIZE _Pragma("GCC ivdep")
#endif

namespace maskcl {

// Elements that one thread must have before a second is worth waking.
constexpr int64_t kGrain = 32768;

// Runs body(begin, end) over [0, count) on several threads where an iteration of `cost` elements makes that worthwhile.
template <typename F>
void parallel(int64_t count, int64_t cost, const F& body) {
  if (count <= 0) return;
  const int64_t grain = kGrain / (cost > 0 ? cost : 1);
  torch::stable::parallel_for(0, count, grain > 0 ? grain : 1, body);
}

}  // namespace maskcl
