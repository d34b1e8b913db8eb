// The exact k-th largest of any number of values on a GPU, without waiting: a radix select whose state stays on the
// device. Each digit of the answer, from the top, takes one launch that counts the values with the digits found so far
// by their next one; its last block finds the digit. The second launch keeps the keys that begin with the first digit,
// and those behind it read these alone. Counts are integers, so the order in which they are added does not matter.
#include "common.cuh"

namespace maskcl::gpu {
namespace {

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kDigitsPerThread = kDigits / kThreads;
constexpr int kMostBlocks = 1024;
// A block has room for one key in so many of its values. Of normal values a tenth share the first digit; a block with
// more reads its values again.
constexpr int kValuesPerKey = 4;
using Count = unsigned long long;  // what atomicAdd knows of 64 bits

struct State {
  uint64_t prefix;  // the digits found
  Count k;          // the rank that is looked for among the values that have them
  Count arrived;    // blocks whose counts are in
  Count kept[kMostBlocks];
  Count counts[kDigits];
};

__global__ void __launch_bounds__(kThreads) start_kernel(State* state, Count k) {
  for (int i = threadIdx.x; i < kDigits; i += kThreads) state->counts[i] = 0;
  if (threadIdx.x != 0) return;
  state->prefix = 0;
  state->k = k;
  state->arrived = 0;
}

// Adds 1 to the count of each lane's digit. Untrained scores are all equal: lanes with the first one's digit add once.
__device__ __forceinline__ void count_digit(uint32_t* counts, uint32_t digit, bool counted, unsigned lanes) {
  if (lanes == 0) return;
  const int leader = __ffs(lanes) - 1;
  const uint32_t first = __shfl_sync(0xffffffffu, digit, leader);
  const unsigned same = __ballot_sync(0xffffffffu, counted && digit == first);
  if (static_cast<int>(threadIdx.x % kWarp) == leader)
    atomicAdd(&counts[first], static_cast<uint32_t>(__popc(same)));
  else if (counted && digit != first)
    atomicAdd(&counts[digit], 1u);
}

// Puts the keys of these lanes behind those that the block has, as long as there is room, and counts them all.
template <typename K>
__device__ __forceinline__ void keep(K* keys, int64_t room, Count* kept, K key, unsigned lanes) {
  if (lanes == 0) return;
  const int lane = threadIdx.x % kWarp, leader = __ffs(lanes) - 1;
  Count first = 0;
  if (lane == leader) first = atomicAdd(kept, static_cast<Count>(__popc(lanes)));
  first = __shfl_sync(0xffffffffu, first, leader);
  const int64_t at = static_cast<int64_t>(first) + __popc(lanes & ((1u << lane) - 1));
  if ((lanes >> lane & 1) != 0 && at < room) keys[at] = key;
}

// One block: the digit of the k-th largest, counted from the highest one down. The counts are 0 again afterwards.
template <typename C, typename K>
__device__ void choose_digit(State* state, int bits, bool magnitude, C* out) {
  __shared__ Count sums[kThreads];
  const int thread = threadIdx.x, top = kDigits - 1 - thread * kDigitsPerThread;
  const Count k = state->k;
  Count own[kDigitsPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kDigitsPerThread; ++i) sum += own[i] = atomicExch(&state->counts[top - i], Count(0));
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
      state->arrived = 0;
      if (out) *out = maskcl::value_of_key(prefix, magnitude);
      return;
    }
    before += own[i];
  }
}

// Counts the next `bits` bits, from bit `shift` on, of the keys K that begin with the prefix. `keys` has `room` places a
// block.
template <typename T, typename K, int V>
__global__ void __launch_bounds__(kThreads)
count_kernel(const T* values, int64_t count, bool magnitude, State* state, int shift, int bits, K* keys, int64_t room,
             compute_t<T>* out) {
  __shared__ uint32_t counts[kDigits];
  __shared__ Count kept[1];
  for (int i = threadIdx.x; i < kDigits; i += kThreads) counts[i] = 0;
  const int found = 8 * static_cast<int>(sizeof(K)) - shift - bits;
  const bool keeps = found == kDigitBits;
  if (threadIdx.x == 0) kept[0] = found > kDigitBits ? state->kept[blockIdx.x] : 0;
  __syncthreads();
  const K prefix = static_cast<K>(state->prefix), digits = (K(1) << bits) - 1;
  const int lane = threadIdx.x % kWarp;
  K* const own = keys + static_cast<int64_t>(blockIdx.x) * room;
  // The same for a whole warp, whose lanes stay together for the ballots.
  const auto look_at = [&](K key, bool inside) {
    const bool counted = inside && (found == 0 || key >> (shift + bits) == prefix);
    const unsigned lanes = __ballot_sync(0xffffffffu, counted);
    count_digit(counts, static_cast<uint32_t>(key >> shift & digits), counted, lanes);
    if (keeps) keep(own, room, kept, key, lanes);
  };
  if (found > kDigitBits && static_cast<int64_t>(kept[0]) <= room) {
    const int64_t all = static_cast<int64_t>(kept[0]);
    for (int64_t base = threadIdx.x - lane; base < all; base += kThreads)
      look_at(base + lane < all ? own[base + lane] : K(0), base + lane < all);
  } else {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V;
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
      for (int k = 0; k < V; ++k)
        look_at(maskcl::order_key(static_cast<compute_t<T>>(value.at[k]), magnitude), at + k < count);
    }
  }
  __syncthreads();
  if (keeps && threadIdx.x == 0) state->kept[blockIdx.x] = kept[0];
  for (int i = threadIdx.x; i < kDigits; i += kThreads)
    if (counts[i] != 0) atomicAdd(&state->counts[i], static_cast<Count>(counts[i]));
  if (is_last_block(&state->arrived)) choose_digit<compute_t<T>, K>(state, bits, magnitude, out);
}

template <typename T, int V>
void run(const T* values, int64_t count, int64_t k, bool magnitude, const Tensor& on, State* state, compute_t<T>* out) {
  using K = typename BitsOf<sizeof(compute_t<T>)>::type;
  const cudaStream_t stream = current_stream(on);
  const unsigned blocks = grid_for(ceil_div(count, V), kMostBlocks);
  const int64_t most = ceil_div(ceil_div(count, kThreads * V), blocks) * kThreads * V;  // values of a block
  const int64_t room = most / kValuesPerKey;
  const Tensor keys = empty_vector(on, blocks * room * static_cast<int64_t>(sizeof(K) / 4), ScalarType::Int);
  start_kernel<<<1, kThreads, 0, stream>>>(state, static_cast<Count>(k));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  for (int shift = 8 * sizeof(K); shift > 0;) {
    const int bits = std::min(kDigitBits, shift);
    shift -= bits;
    count_kernel<T, K, V><<<blocks, kThreads, 0, stream>>>(values, count, magnitude, state, shift, bits,
                                                           static_cast<K*>(keys.mutable_data_ptr()), room,
                                                           shift == 0 ? out : nullptr);
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
    const T* data = static_cast<const T*>(all.const_data_ptr());
    const auto launch = [&]<int V>() {
      run<T, V>(data, all.numel(), k, magnitude, values, static_cast<State*>(state.mutable_data_ptr()),
                static_cast<compute_t<T>*>(out.mutable_data_ptr()));
    };
    if (aligned16(data))
      launch.template operator()<vector_width<T>>();
    else
      launch.template operator()<1>();
  });
  return out;
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) { m.impl("kth_largest", TORCH_BOX(&maskcl::gpu::kth_largest)); }
