// Kernels with a fault each, and launches; test_emulator.py knows what the emulator must say of them.
#include <cuda_runtime.h>

#include <array>
#include <exception>
#include <iostream>
#include <string>

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) half_at_a_barrier(int*) {
  if (threadIdx.x % 2) __syncthreads();  // line 14
}

__global__ void __launch_bounds__(kThreads) at_two_barriers(int*) {
  if (threadIdx.x < 32)
    __syncthreads();  // line 19
  else
    __syncthreads();  // line 21
}

__global__ void __launch_bounds__(kThreads) lane_leaves(int*) {
  if (threadIdx.x != 7) __ballot_sync(0xffffffffu, 1);  // line 25
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

void run(const std::string& name, int* out) {
  const cudaStream_t stream = emulator::stream_of(0);
  const auto is = [&](const char* other) { return name == other; };
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

extern "C" void emulator_order(int order, uint64_t seed);

// A line "order kernel" is answered by the kernel's 64 numbers, and what was wrong with it.
int main() {
  int order;
  for (std::string name; std::cin >> order && std::getline(std::cin >> std::ws, name);) {
    emulator_order(order, 3);
    std::array<int, 64> out;
    out.fill(-9);
    std::string what;
    try {
      run(name, out.data());
    } catch (const std::exception& error) {
      what = error.what();
    }
    for (const int number : out) std::cout << number << ' ';
    std::cout << what << std::endl;
  }
}
