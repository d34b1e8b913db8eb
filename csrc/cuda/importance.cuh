// What one file's op needs of another's.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

// importance[i] += weight times the sum over `samples` of |parts[n][i]| (its square); `parts` is contiguous, importance
// float32 (float64 for float64 parts) of as many elements as a sample. In importance.cu.
void add_sizes_of_samples(const char* op, const Tensor& parts, int64_t samples, void* importance, double weight,
                          bool square);

}  // namespace maskcl::gpu
