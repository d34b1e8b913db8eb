// Kernels with a fault each, and launches; test_emulator.py knows what the emulator must say of them.
#include <cuda_runtime.h>

#include <cstring>
#include <exception>

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) half_at_a_barrier(int*) {
  if (threadIdx.x % 2) __syncthreads();  // line 12
}

__global__ void __launch_bounds__(kThreads) at_two_barriers(int*) {
  if (threadIdx.x < 32)
    __syncthreads();  // line 17
  else
    __syncthreads();  // line 19
}

__global__ void __launch_bounds__(kThreads) lane_leaves(int*) {
  if (threadIdx.x != 7) __ballot_sync(0xffffffffu, 1);  // line 23
}

__global__ void __launch_bounds__(kThreads) part_of_a_warp(int*) { __ballot_sync(0xffffu, 1); }

__global__ void __launch_bounds__(kThreads) traps(int*) { __trap(); }

__global__ void __launch_bounds__(kThreads) reads_what_it_did_not_write(int* out) {
  __shared__ int values[2];
  if (threadIdx.x == 0) out[blockIdx.x] = values[blockIdx.x % 2], values[0] = values[1] = 5;
}

__global__ void __launch_bounds__(kThreads) misses_a_barrier(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void __launch_bounds__(kThreads) reverses(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void __launch_bounds__(kThreads) takes_too_much(int*) {
  __shared__ char values[50000];
  values[0] = 1;
}

void run(const char* name, int* out) {
  const cudaStream_t stream = emulator::stream_of(0);
  const auto is = [name](const char* other) { return strcmp(name, other) == 0; };
  if (is("half_at_a_barrier")) half_at_a_barrier<<<1, 64, 0, stream>>>(out);
  if (is("at_two_barriers")) at_two_barriers<<<1, 64, 0, stream>>>(out);
  if (is("lane_leaves")) lane_leaves<<<1, 64, 0, stream>>>(out);
  if (is("part_of_a_warp")) part_of_a_warp<<<1, 64, 0, stream>>>(out);
  if (is("traps")) traps<<<1, 64, 0, stream>>>(out);
  if (is("reads_what_it_did_not_write")) reads_what_it_did_not_write<<<4, 64, 0, stream>>>(out);
  if (is("misses_a_barrier")) misses_a_barrier<<<1, 64, 0, stream>>>(out);
  if (is("reverses")) reverses<<<1, 64, 0, stream>>>(out);
  if (is("takes_too_much")) takes_too_much<<<1, 64, 0, stream>>>(out);
  if (is("large block")) reverses<<<1, 257, 0, stream>>>(out);
  if (is("large grid")) reverses<<<dim3(1, 65536), 64, 0, stream>>>(out);
  if (is("no grid")) reverses<<<0, 64, 0, stream>>>(out);
  if (is("other stream")) reverses<<<1, 64, 0, emulator::stream_of(1)>>>(out);
  if (is("no check")) reverses<<<1, 64, 0, stream>>>(out), reverses<<<1, 64, 0, stream>>>(out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

// What was wrong with it, "" for nothing.
extern "C" __attribute__((visibility("default"))) const char* run_kernel(const char* name, int* out) {
  static std::string what;
  what.clear();
  try {
    run(name, out);
  } catch (const std::exception& error) {
    what = error.what();
  }
  return what.c_str();
}
