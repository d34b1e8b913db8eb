// The bits of a weight mask, as a GPU's kernels read them.
#pragma once

#include "../mask_words.h"
#include "blocks.cuh"

namespace maskcl::gpu {

// Words for `numel` weights, checked, and kept alive until the launch.
struct Words {
  Tensor tensor;
  Planes planes;

  Words(const char* op, const Tensor& words, int64_t numel, const Tensor& like) {
    check_cuda(op, "words", words, like);
    check_words(op, words, numel);
    tensor = torch::stable::contiguous(words);
    planes.on = const_data<uint32_t>(tensor);
    planes.negative = words.dim() == 2 ? planes.on + words_for(numel) : nullptr;
  }
};

// The bits of the weights from `at` on, the first one lowest. They end with their word: V of them are right where V
// divides 32 and `at`.
__device__ __forceinline__ uint32_t bits_from(const uint32_t* plane, int64_t at) {
  return plane[at / kWord] >> (at % kWord);
}

// w = W m for the V weights from `at` on, on their bit patterns.
template <typename U, int V>
__device__ __forceinline__ void apply_bits(Vector<U, V>& w, const Planes& planes, int64_t at) {
  const uint32_t on = bits_from(planes.on, at), negative = planes.negative ? bits_from(planes.negative, at) : 0;
#pragma unroll
  for (int k = 0; k < V; ++k) w.at[k] = maskcl::select_bits(w.at[k], on >> k & 1, negative >> k & 1);
}

// Writes a block of W m into `out`, an element of `bytes` bytes at a time.
void packed_select_into(const void* weight, const Planes& planes, void* out, const Block& block, size_t bytes,
                        cudaStream_t stream);

}  // namespace maskcl::gpu
