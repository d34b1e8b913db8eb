// The exact k-th largest of any number of values on a GPU, without waiting: a radix select whose state stays on the
// device. Each digit of the answer, from the top, takes one pass that counts the values with the digits found so far by
// their next one. Counts are integers, so the order in which they are added does not matter.
#include "common.cuh"

namespace maskcl::gpu {
namespace {

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kDigitsPerThread = kDigits / kThreads;
using Count = unsigned long long;  // what atomicAdd knows of 64 bits

struct State {
  uint64_t prefix;  // the digits found
  Count k;          // the rank that is looked for among the values that have them
  Count counts[kDigits];
};

__global__ void __launch_bounds__(kThreads) start_kernel(State* state, Count k) {
  for (int i = threadIdx.x; i < kDigits; i += kThreads) state->counts[i] = 0;
  if (threadIdx.x != 0) return;
  state->prefix = 0;
  state->k = k;
}

// Adds 1 to the count of each lane's digit. Untrained scores are all equal: lanes with the first one's digit add once.
__device__ __forceinline__ void count_digit(uint32_t* counts, uint32_t digit, bool counted) {
  const unsigned lanes = __ballot_sync(0xffffffffu, counted);
  if (lanes == 0) return;
  const int leader = __ffs(lanes) - 1;
  const uint32_t first = __shfl_sync(0xffffffffu, digit, leader);
  const unsigned same = __ballot_sync(0xffffffffu, counted && digit == first);
  if (static_cast<int>(threadIdx.x % kWarp) == leader)
    atomicAdd(&counts[first], static_cast<uint32_t>(__popc(same)));
  else if (counted && digit != first)
    atomicAdd(&counts[digit], 1u);
}

// Counts the next `bits` bits, from bit `shift` on, of the keys K that begin with the prefix.
template <typename T, typename K, int V>
__global__ void __launch_bounds__(kThreads)
count_kernel(const T* values, int64_t count, bool magnitude, State* state, int shift, int bits) {
  __shared__ uint32_t counts[kDigits];
  for (int i = threadIdx.x; i < kDigits; i += kThreads) counts[i] = 0;
  __syncthreads();
  const K prefix = static_cast<K>(state->prefix), digits = (K(1) << bits) - 1;
  const bool all = shift + bits == 8 * static_cast<int>(sizeof(K));
  const int lane = threadIdx.x % kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V;
  // `base` is the same for a whole warp: its lanes stay together for the ballots.
  for (int64_t base = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x - lane) * V; base < count;
       base += step) {
    const int64_t at = base + lane * V;
    Vector<T, V> value{};
    if (at + V <= count) {
      value = load<V>(values + at);
    } else {
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (at + k < count) value.at[k] = values[at + k];
    }
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const K key = maskcl::order_key(static_cast<compute_t<T>>(value.at[k]), magnitude);
      const bool counted = at + k < count && (all || key >> (shift + bits) == prefix);
      count_digit(counts, static_cast<uint32_t>(key >> shift & digits), counted);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kDigits; i += kThreads)
    if (counts[i] != 0) atomicAdd(&state->counts[i], static_cast<Count>(counts[i]));
}

// One block: the digit of the k-th largest, counted from the highest one down. The counts are 0 again afterwards.
template <typename C, typename K>
__global__ void __launch_bounds__(kThreads) choose_kernel(State* state, int bits, bool magnitude, C* out) {
  __shared__ Count sums[kThreads];
  const int thread = threadIdx.x, top = kDigits - 1 - thread * kDigitsPerThread;
  const Count k = state->k;
  Count own[kDigitsPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kDigitsPerThread; ++i) {
    sum += own[i] = state->counts[top - i];
    state->counts[top - i] = 0;
  }
  sums[thread] = sum;
  __syncthreads();  // every thread has read k, too
  for (int offset = 1; offset < kThreads; offset *= 2) {
    const Count before = thread >= offset ? sums[thread - offset] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  Count before = sums[thread] - sum;
  if (before >= k || k > sums[thread]) return;  // the k-th is another thread's
#pragma unroll
  for (int i = 0; i < kDigitsPerThread; ++i) {
    if (k <= before + own[i]) {
      const K prefix = static_cast<K>(state->prefix) << bits | static_cast<K>(top - i);
      state->prefix = prefix;
      state->k = k - before;
      if (out) *out = maskcl::value_of_key(prefix, magnitude);
      return;
    }
    before += own[i];
  }
}

template <typename T>
void run(const T* values, int64_t count, int64_t k, bool magnitude, State* state, compute_t<T>* out,
         cudaStream_t stream) {
  using C = compute_t<T>;
  using K = typename BitsOf<sizeof(C)>::type;
  start_kernel<<<1, kThreads, 0, stream>>>(state, static_cast<Count>(k));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  for (int shift = 8 * sizeof(K); shift > 0;) {
    const int bits = std::min(kDigitBits, shift);
    shift -= bits;
    auto launch = [&]<int V>() {
      count_kernel<T, K, V>
          <<<grid_for(ceil_div(count, V), 1024), kThreads, 0, stream>>>(values, count, magnitude, state, shift, bits);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (aligned16(values))
      launch.template operator()<vector_width<T>>();
    else
      launch.template operator()<1>();
    choose_kernel<C, K><<<1, kThreads, 0, stream>>>(state, bits, magnitude, shift == 0 ? out : nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace

Tensor kth_largest(const Tensor& values, int64_t k, bool magnitude) {
  const char* op = "kth_largest";
  const DeviceGuard guard(values.get_device_index());
  MASKCL_CHECK(k >= 1 && k <= values.numel(), op, ": k is ", k, ", wanted 1 to ", values.numel());
  const Tensor all = is_channels_last(values) ? values : torch::stable::contiguous(values);  // any order will do
  const Tensor state = empty_vector(values, sizeof(State) / sizeof(int64_t), ScalarType::Long);
  const Tensor out = fresh(values, {}, compute_dtype(values.scalar_type()));
  dispatch_float(values.scalar_type(), op, [&]<typename T>() {
    run(static_cast<const T*>(all.const_data_ptr()), all.numel(), k, magnitude,
        static_cast<State*>(state.mutable_data_ptr()), static_cast<compute_t<T>*>(out.mutable_data_ptr()),
        current_stream(values));
  });
  return out;
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) { m.impl("kth_largest", TORCH_BOX(&maskcl::gpu::kth_largest)); }
