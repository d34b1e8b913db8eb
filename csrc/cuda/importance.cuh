// What the kernels of importances share.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

constexpr int64_t kSpan = 4096;  // elements of a tensor that a block takes

// Calls body<V>(at) for every V elements of [begin, end), and body<1>(at) for each of those left over.
template <int V, typename F>
__device__ __forceinline__ void for_range(int64_t begin, int64_t end, F&& body) {
  const int64_t whole = begin + (end - begin) / V * V;
  for (int64_t at = begin + threadIdx.x * V; at < whole; at += kThreads * V) body.template operator()<V>(at);
  if constexpr (V > 1)
    if (whole + threadIdx.x < end) body.template operator()<1>(whole + threadIdx.x);
}

// importance[i] += weight times the sum over `samples` of |parts[n][i]| (its square); `parts` is contiguous, importance
// float32 (float64 for float64 parts) of as many elements as a sample. In mas_accumulate.cu.
void add_sizes_of_samples(const char* op, const Tensor& parts, int64_t samples, void* importance, double weight,
                          bool square);

}  // namespace maskcl::gpu
