// Masks and scores to words by warp votes, and words to masks.
#pragma once

#include "select.cuh"
#include "words.cuh"

namespace maskcl::gpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kVotes = 8;  // elements that a lane has in flight while it packs

// A warp makes 32 words, one of which each lane stores; level_of(value) is -1, 0 or 1. `negative` is null for a binary
// mask.
template <typename T, typename F>
__device__ __forceinline__ void pack_words(const T* values, uint32_t* on, uint32_t* negative, int64_t count,
                                           const F& level_of) {
  const int lane = threadIdx.x % kWarp;
  const int64_t words = (count + kWord - 1) / kWord;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp) * kWarp;
  for (int64_t first = warp * kWarp; first < words; first += step) {  // the same for a whole warp, for its votes
    uint32_t mine = 0, mine_negative = 0;
    for (int word = 0; word < kWarp && first + word < words; word += kVotes) {
      T value[kVotes];
#pragma unroll
      for (int j = 0; j < kVotes; ++j) {
        const int64_t at = (first + word + j) * kWord + lane;
        value[j] = at < count ? values[at] : T(0);
      }
#pragma unroll
      for (int j = 0; j < kVotes; ++j) {
        const bool inside = (first + word + j) * kWord + lane < count;  // bits past the last weight are 0
        const int level = inside ? level_of(value[j]) : 0;
        const uint32_t vote = __ballot_sync(0xffffffffu, level != 0);
        if (lane == word + j) mine = vote;
        if (negative == nullptr) continue;
        const uint32_t vote_negative = __ballot_sync(0xffffffffu, level < 0);
        if (lane == word + j) mine_negative = vote_negative;
      }
    }
    if (first + lane >= words) continue;
    on[first + lane] = mine;
    if (negative) negative[first + lane] = mine_negative;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
pack_mask_kernel(const T* mask, uint32_t* on, uint32_t* negative, int64_t count) {
  constexpr bool half = std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>;
  pack_words(mask, on, negative, count, [](T value) {
    const auto v = static_cast<std::conditional_t<half, float, T>>(value);
    if constexpr (std::is_unsigned_v<T>)
      return v != 0 ? 1 : 0;
    else
      return v != 0 ? (v < 0 ? -1 : 1) : 0;
  });
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
pack_scores_kernel(const S* scores, uint32_t* on, uint32_t* negative, int64_t count, Select<compute_t<S>> p) {
  using C = compute_t<S>;
  const C threshold = p.threshold.get();
  dispatch_levels(p.levels, [&]<Levels L>() {
    pack_words(scores, on, negative, count,
               [threshold](S value) { return maskcl::level<L>(static_cast<C>(value), threshold); });
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) unpack_kernel(Planes planes, T* out, int64_t count) {
  for_vectors<vector_width<T>>(count, [&]<int V>(int64_t at) {
    const uint32_t on = bits_from(planes.on, at), negative = planes.negative ? bits_from(planes.negative, at) : 0;
    Vector<T, V> value;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int level = static_cast<int>(on >> k & 1);
      value.at[k] = static_cast<T>(static_cast<float>(negative >> k & 1 ? -level : level));
    }
    store(out + at, value);
  });
}

// Runs body<T>() for a dtype that masks are stored in; bool is 0 or 1 in a byte.
template <typename F>
void dispatch_mask(const char* op, ScalarType dtype, F&& body) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte: return body.template operator()<uint8_t>();
    case ScalarType::Char: return body.template operator()<int8_t>();
    case ScalarType::Short: return body.template operator()<int16_t>();
    case ScalarType::Int: return body.template operator()<int32_t>();
    case ScalarType::Long: return body.template operator()<int64_t>();
    default: return dispatch_float(dtype, op, body);
  }
}

// A thread packs 32 elements.
unsigned packing_blocks(int64_t count) { return grid_for(words_for(count), 1 << 16); }

}  // namespace
}  // namespace maskcl::gpu
