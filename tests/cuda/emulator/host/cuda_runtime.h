// Stands in for CUDA's own header when csrc/cuda is compiled for the host: the part of it that the kernels use.
#pragma once

#include <torch/csrc/stable/macros.h>

#include "emulator.h"

// --- words of the language -------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)  // rewrite.py sees to it that it begins with kThreads, launch.cpp that no block has more
#define CUDART_VERSION 13000        // the newest interface: parameters of up to 32 KB

// --- barriers, votes, shuffles: by macros, so that errors name the kernel's own line ---------------------------------

#define __syncthreads() emulator::barrier(emulator::Location::current())
#define __shfl_xor_sync(lanes, value, by) \
  emulator::shuffle<true>(lanes, value, by, emulator::Location::current())
#define __shfl_sync(lanes, value, from) emulator::shuffle<false>(lanes, value, from, emulator::Location::current())
#define __ballot_sync(lanes, predicate) emulator::ballot(lanes, predicate, emulator::Location::current())

// --- functions -------------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
[[noreturn]] inline void __trap() { emulator::fail("__trap()"); }

// No two threads of the emulator run at once, so an atomic operation is an ordinary one.
template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

template <typename T>
T atomicExch(T* to, T value) {
  const T before = *to;
  *to = value;
  return before;
}
inline void __threadfence() {}

// --- the host's side -------------------------------------------------------------------------------------------------

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }

struct cudaFuncAttributes {
  int ptxVersion;
};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = emulator::ptx_version();
  return cudaSuccess;
}

// What torch declares only where it is asked for CUDA.
inline int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = emulator::stream_of(device);
  return 0;
}

#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_KERNEL_LAUNCH_CHECK() emulator::check_launch()
