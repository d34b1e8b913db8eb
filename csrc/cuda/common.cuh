// What the CUDA kernels share beyond csrc/common.h: stream and launch, scalars, 16-byte vectors, block sums.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>

#include "../checks.h"

namespace maskcl::gpu {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& on) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Blocks of a grid-stride loop over n items: from the size alone, so that sums come out alike on every GPU.
inline unsigned grid_for(int64_t n, int64_t most = 4096) {
  return static_cast<unsigned>(std::min(std::max<int64_t>(ceil_div(n, kThreads), 1), most));
}

inline void check_cuda(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  MASKCL_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), op, ": ", name,
               " is not on the device of the first argument, cuda:", like.get_device_index());
}

inline void check_same_shape(const char* op, const char* name, const Tensor& t, const Tensor& like, const char* of) {
  check_cuda(op, name, t, like);
  check_shape(op, name, t, like, of);
}

// a / b and a % b; in 32 bits where they fit, which is several times cheaper.
struct Division {
  int64_t quotient, remainder;
  __device__ __forceinline__ Division(int64_t a, int64_t b) {
    if (((a | b) >> 31) == 0) {
      const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
      quotient = q;
      remainder = static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b);
    } else {
      quotient = a / b;
      remainder = a - quotient * b;
    }
  }
};

// A 0-d tensor read where it lives: on the device by the kernel, on the host before the launch. Neither waits.
template <typename T>
struct Scalar {
  const T* on_device;
  T on_host;
  __device__ T get() const { return on_device ? *on_device : on_host; }
};

// `typed` keeps a converted copy alive until the launch. Converting launches a kernel, and checks may throw: not to be
// called among another launch's arguments, whose configuration CUDA has taken by then. A CUDA graph keeps a number of
// the host's as it was when it was captured.
template <typename T>
Scalar<T> scalar_of(const char* op, const char* name, const Tensor& value, const Tensor& like, Tensor& typed) {
  check_one(op, name, value);
  if (value.is_cuda()) check_cuda(op, name, value, like);
  typed = to_dtype(value, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  const T* data = static_cast<const T*>(typed.const_data_ptr());
  return value.is_cuda() ? Scalar<T>{data, T(0)} : Scalar<T>{nullptr, *data};
}

// --- vectors --------------------------------------------------------------------------------------------------------

// V elements of T: one load or store where they are 16 bytes or fewer, else one for each 16 bytes.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
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

// Grid-stride: calls body<V>(at) for every V elements of `count`, and body<1>(at) for each of those left over.
template <int V, typename F>
__device__ __forceinline__ void for_vectors(int64_t count, F&& body) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V, whole = count / V * V;
  for (int64_t at = thread * V; at < whole; at += step) body.template operator()<V>(at);
  if constexpr (V > 1)
    if (whole + thread < count) body.template operator()<1>(whole + thread);
}

// launch<V>(blocks) for the widest vectors that these pointers allow.
template <int Widest, typename F>
void launch_vectors(int64_t count, bool wide, std::initializer_list<const void*> pointers, F&& launch) {
  if (count == 0) return;
  if (wide && std::all_of(pointers.begin(), pointers.end(), aligned16))
    launch.template operator()<Widest>(grid_for(ceil_div(count, Widest), 1 << 16));
  else
    launch.template operator()<1>(grid_for(count, 1 << 16));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
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

// --- the last block -------------------------------------------------------------------------------------------------

// Whether this block is the last of the grid to come here, for all its threads alike: what the others wrote before they
// came it may read, by atomic operations or where it has read nothing of the same 128 bytes yet. `arrived` begins at 0.
__device__ inline bool is_last_block(unsigned long long* arrived) {
  __shared__ bool last[1];
  __threadfence();
  __syncthreads();  // for blocks beside this one
  if (threadIdx.x == 0) last[0] = atomicAdd(arrived, 1ull) + 1 == static_cast<unsigned long long>(gridDim.x);
  __syncthreads();
  __threadfence();
  return last[0];
}

}  // namespace maskcl::gpu
