// How the CPU kernels use threads and vector units.
#pragma once

#include "../checks.h"

// One copy of a loop for each instruction set, chosen when the library is loaded; no -march, so one binary serves all.
// Narrow: none with vectors of 512 bits, which divisions and roots gain nothing by and the rest of a step loses by.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MASKCL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define MASKCL_NARROW_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 14)
#define MASKCL_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define MASKCL_NARROW_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define MASKCL_CLONES
#define MASKCL_NARROW_CLONES
#endif

#define MASKCL_INLINE inline __attribute__((always_inline))

// The iterations of the next loop do not depend on each other, even where it works in place.
#if defined(__clang__)
#define MASKCL_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define MASKCL_VECTORIZE _Pragma("GCC ivdep")
#endif

#define MASKCL_PRAGMA(text) _Pragma(#text)

// Wholly unroll the next loop, which is short: its arrays are then registers.
#define MASKCL_UNROLL MASKCL_PRAGMA(GCC unroll 8)

// The next loop adds into these: they may be added in any order, so that lanes add on their own. Else its iterations do
// not depend on each other.
#define MASKCL_SUM(...) MASKCL_PRAGMA(omp simd reduction(+ : __VA_ARGS__))

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace maskcl {

// A large fresh output costs more in page faults than in arithmetic: ask for huge pages, where the system grants them on
// request, before it is first written. Contents, and memory that is mapped already, are not affected.
inline void expect_large_writes(const Tensor& out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t bytes = out.numel() * out.element_size();
  if (bytes < 2 * kHuge) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = (begin + bytes) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish: failure changes nothing
#endif
}

// While it lives, this thread takes numbers below 2^-126 as 0 and makes 0 of such results. A gate that is nearly closed
// brings them forth by the thousand, and each costs an x86 core a hundred cycles. For the time of a kernel alone: callers
// keep gradual underflow.
struct FlushSubnormals {
#if defined(__SSE__)
  const unsigned before = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
#else
  FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
};

// Elements that one thread must have before a second is worth waking.
constexpr int64_t kGrain = 32768;

// Runs body(begin, end) over [0, count) on several threads where an iteration of `cost` elements makes that worthwhile.
template <typename F>
void parallel(int64_t count, int64_t cost, const F& body) {
  if (count <= 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / (cost > 0 ? cost : 1));
  if (count <= grain) return body(0, count);
  torch::stable::parallel_for(0, count, grain, body);
}

// FlushSubnormals on all threads of the pool, which the library's products share.
class FlushOnAllThreads {
 public:
  FlushOnAllThreads() { on_each([] { own().emplace(); }); }
  ~FlushOnAllThreads() { on_each([] { own().reset(); }); }
  FlushOnAllThreads(const FlushOnAllThreads&) = delete;

 private:
  static std::optional<FlushSubnormals>& own() {
    thread_local std::optional<FlushSubnormals> flush;
    return flush;
  }
  template <typename F>
  static void on_each(const F& body) {
    const int64_t threads = torch::stable::get_num_threads();  // each has one iteration, and the same one every time
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { body(); });
  }
};

}  // namespace maskcl
