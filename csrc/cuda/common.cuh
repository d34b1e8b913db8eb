// What the CUDA kernels share beyond csrc/common.h: stream and launch, 16-byte vectors, block sums.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>

#include "../common.h"

namespace maskcl::gpu {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& on) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a grid-stride loop over n items: from the size alone, so that sums come out alike on every GPU.
inline unsigned grid_for(int64_t n, int64_t most = 4096) {
  return static_cast<unsigned>(std::min(std::max<int64_t>(ceil_div(n, kThreads), 1), most));
}

inline void check_cuda(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  MASKCL_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), op, ": ", name,
               " is not on the device of the first argument, cuda:", like.get_device_index());
}

// --- vectors --------------------------------------------------------------------------------------------------------

// V elements of T as one load or store of up to 16 bytes.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

template <typename T>
constexpr int vector_width = 16 / sizeof(T);

inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <int V, typename T>
__device__ __forceinline__ Vector<T, V> load(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <int V, typename T>
__device__ __forceinline__ void store(T* to, const Vector<T, V>& value) {
  *reinterpret_cast<Vector<T, V>*>(to) = value;
}

// --- sums -----------------------------------------------------------------------------------------------------------

// The sum over a warp, in every lane; the order is fixed.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over a block of kThreads threads, in every thread; the order is fixed. May be called repeatedly.
template <typename T>
__device__ T block_sum(T value) {
  __shared__ T sums[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  __syncthreads();  // the sums of an earlier call have been read
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  return warp_sum(lane < kThreads / kWarp ? sums[lane] : T(0));
}

}  // namespace maskcl::gpu
