// Kernels of open products, for each width of vectors; the processor takes the widest that it has. Unlike other loops'
// clones they differ in the tile, not only in instructions.
#pragma once

#include "open_tile.h"

#define MASKCL_KERNEL(TARGET, name, kernel, Job) \
  TARGET void name(const Job& job, int64_t begin, int64_t end) { kernel(job, begin, end); }

// Defines kernels(), a Kernels, from TABLE(TARGET, level, bytes), which defines a constant of that type called level.
#if defined(__x86_64__) && defined(__GNUC__)
#define MASKCL_BY_WIDTH(TABLE)                                                             \
  TABLE(, plain, 16)                                                                       \
  TABLE(__attribute__((target("avx2,fma"))), avx2, 32)                                     \
  TABLE(__attribute__((target("avx512f"))), avx512, 64)                                    \
  const Kernels& kernels() {                                                               \
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");      \
    static const Kernels& found = __builtin_cpu_supports("avx512f") ? avx512 : fma ? avx2 : plain; \
    return found;                                                                          \
  }
#else
#define MASKCL_BY_WIDTH(TABLE) \
  TABLE(, plain, 16)           \
  const Kernels& kernels() { return plain; }
#endif

namespace maskcl {
namespace {

// One of the kernels over [0, count), each of `cost` elements.
template <typename Job>
void run(void (*kernel)(const Job&, int64_t, int64_t), const Job& job, int64_t count, int64_t cost) {
  parallel(count, cost, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    kernel(job, begin, end);
  });
}

bool all_float(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor* t) { return !t || t->scalar_type() == ScalarType::Float; });
}

}  // namespace
}  // namespace maskcl
