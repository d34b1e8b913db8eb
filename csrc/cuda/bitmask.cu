// Weight masks of one bit (ternary: two) a weight on a GPU: packing by warp votes, set operations, and weights and
// embeddings that read the bits. packed_linear is in packed_linear.cu.
#include <cassert>

#include "select.cuh"
#include "words.cuh"

namespace maskcl::gpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kVotes = 8;  // elements that a lane has in flight while it packs

// --- packing --------------------------------------------------------------------------------------------------------

// A warp makes 32 words, one of which each lane stores; sign(value) is -1, 0 or 1. `negative` is null for a binary mask.
template <typename T, typename F>
__device__ __forceinline__ void pack_words(const T* values, int64_t count, uint32_t* on, uint32_t* negative,
                                           const F& sign) {
  const int lane = threadIdx.x % kWarp;
  const int64_t words = (count + kWordBits - 1) / kWordBits;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp) * kWarp;
  for (int64_t first = warp * kWarp; first < words; first += step) {  // the same for a whole warp, for its votes
    uint32_t mine = 0, mine_negative = 0;
    for (int word = 0; word < kWarp && first + word < words; word += kVotes) {
      T value[kVotes];
#pragma unroll
      for (int j = 0; j < kVotes; ++j) {
        const int64_t at = (first + word + j) * kWordBits + lane;
        value[j] = at < count ? values[at] : T(0);
      }
#pragma unroll
      for (int j = 0; j < kVotes; ++j) {
        const bool inside = (first + word + j) * kWordBits + lane < count;  // bits past the last weight are 0
        const int level = inside ? sign(value[j]) : 0;
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
pack_mask_kernel(const T* mask, int64_t count, uint32_t* on, uint32_t* negative) {
  constexpr bool half = std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>;
  pack_words(mask, count, on, negative, [](T value) {
    const auto v = static_cast<std::conditional_t<half, float, T>>(value);
    if constexpr (std::is_unsigned_v<T>)
      return v != 0 ? 1 : 0;
    else
      return v != 0 ? (v < 0 ? -1 : 1) : 0;
  });
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
pack_scores_kernel(const S* scores, int64_t count, uint32_t* on, uint32_t* negative, Select<compute_t<S>> p) {
  using C = compute_t<S>;
  const C threshold = p.threshold.get();
  dispatch_levels(p.levels, [&]<Levels L>() {
    pack_words(scores, count, on, negative,
               [threshold](S value) { return maskcl::level<L>(static_cast<C>(value), threshold); });
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) unpack_kernel(Bits bits, T* out, int64_t count) {
  for_vectors<vector_width<T>>(count, [&]<int V>(int64_t at) {
    const uint32_t on = bits_from(bits.on, at), negative = bits.negative ? bits_from(bits.negative, at) : 0;
    Vector<T, V> value;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int level = static_cast<int>(on >> k & 1);
      value.at[k] = static_cast<T>(static_cast<float>(negative >> k & 1 ? -level : level));
    }
    store(out + at, value);
  });
}

// --- words ----------------------------------------------------------------------------------------------------------

enum class How { both, either, differ, first_only };

template <int V>
__global__ void __launch_bounds__(kThreads)
combine_kernel(const uint32_t* a, const uint32_t* b, uint32_t* out, int64_t count, How how) {
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    Vector<uint32_t, W> x = load<W>(a + at);
    const Vector<uint32_t, W> y = load<W>(b + at);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const uint32_t p = x.at[k], q = y.at[k];
      x.at[k] = how == How::both ? p & q : how == How::either ? p | q : how == How::differ ? p ^ q : p & ~q;
    }
    store(out + at, x);
  });
}

// `blocks` blocks share a row; they add up integers, so the order in which they do does not matter. `out` is 0 before.
template <int V>
__global__ void __launch_bounds__(kThreads)
popcount_kernel(const uint32_t* words, int64_t width, int64_t blocks, unsigned long long* out) {
  const int64_t row = blockIdx.x / blocks, part = blockIdx.x % blocks;
  const uint32_t* from = words + row * width;
  int64_t sum = 0;
  for (int64_t at = (part * kThreads + threadIdx.x) * V; at < width; at += blocks * kThreads * V) {
    const Vector<uint32_t, V> word = load<V>(from + at);
#pragma unroll
    for (int k = 0; k < V; ++k) sum += __popc(word.at[k]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0 && sum != 0) atomicAdd(out + row, static_cast<unsigned long long>(sum));
}

// --- weights --------------------------------------------------------------------------------------------------------

// weight and out point to the block's first element, which is element `first` of the weight.
template <typename U, int V>
__global__ void __launch_bounds__(kThreads)
select_kernel(const U* weight, Bits bits, U* out, int64_t count, int64_t first, int64_t columns, int64_t width) {
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    const int64_t from = place_in_weight(at, columns, width);
    Vector<U, W> w = load<W>(weight + from);
    apply_bits(w, bits, first + from);
    store(out + at, w);
  });
}

// count elements: rows of `width`, each weight row index[row]. Vectors do not cross rows: width is a multiple of V.
template <typename U, int V>
__global__ void __launch_bounds__(kThreads)
embedding_kernel(const int64_t* index, const U* weight, Bits bits, U* out, int64_t count, int64_t width, int64_t rows) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V; at < count; at += step) {
    const Division row(at, width);
    const int64_t chosen = index[row.quotient];
    assert(chosen >= 0 && chosen < rows);
    const int64_t from = chosen * width + row.remainder;
    Vector<U, V> w = load<V>(weight + from);
    apply_bits(w, bits, from);
    store(out + at, w);
  }
}

// --- host -----------------------------------------------------------------------------------------------------------

// Runs body<U>() for the unsigned type of an element's size.
template <typename F>
void dispatch_bytes(size_t bytes, F&& body) {
  if (bytes == 2) return body.template operator()<uint16_t>();
  if (bytes == 4) return body.template operator()<uint32_t>();
  return body.template operator()<uint64_t>();
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

// Fresh words for `count` weights, and where their planes are.
struct FreshWords {
  Tensor tensor;
  uint32_t *on, *negative;

  FreshWords(const Tensor& like, int64_t count, bool ternary) {
    const int64_t words = words_for(count);
    tensor = ternary ? torch::stable::new_empty(like, {2, words}, ScalarType::Int)
                     : torch::stable::new_empty(like, {words}, ScalarType::Int);
    on = static_cast<uint32_t*>(tensor.mutable_data_ptr());
    negative = ternary ? on + words : nullptr;
  }
};

// A thread packs 32 elements.
unsigned packing_blocks(int64_t count) { return grid_for(ceil_div(count, kWordBits), 1 << 16); }

How parse_how(const std::string& how) {
  if (how == "and") return How::both;
  if (how == "or") return How::either;
  if (how == "xor") return How::differ;
  MASKCL_CHECK(how == "andnot", "combine_words: how is '", how, "', wanted and, or, xor or andnot");
  return How::first_only;
}

}  // namespace

Tensor pack_mask(const Tensor& mask, bool ternary) {
  const char* op = "pack_mask";
  const DeviceGuard guard(mask.get_device_index());
  const ScalarType dtype = mask.scalar_type();
  const bool stored = dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char ||
                      dtype == ScalarType::Short || dtype == ScalarType::Int || dtype == ScalarType::Long ||
                      dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16;
  MASKCL_CHECK(stored || !ternary, op, ": mask is ", torch::headeronly::toString(dtype), ", wanted a signed dtype");
  const Tensor m = to_dtype(mask, stored ? dtype : ScalarType::Bool);
  const FreshWords words(m, m.numel(), ternary);
  if (m.numel() == 0) return words.tensor;
  dispatch_mask(op, m.scalar_type(), [&]<typename T>() {
    pack_mask_kernel<T><<<packing_blocks(m.numel()), kThreads, 0, current_stream(m)>>>(const_data<T>(m), m.numel(),
                                                                                      words.on, words.negative);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return words.tensor;
}

Tensor pack_scores(const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels, double threshold,
                   bool inclusive) {
  const char* op = "pack_scores";
  const DeviceGuard guard(scores.get_device_index());
  const Levels parsed = parse_levels(levels, inclusive);
  MASKCL_CHECK(parsed != Levels::soft, op, ": levels is 'soft', which has no bits");
  const Tensor s = torch::stable::contiguous(scores);
  const FreshWords words(s, s.numel(), parsed == Levels::ternary || parsed == Levels::ternary_symmetric);
  if (s.numel() == 0) return words.tensor;
  dispatch_float(s.scalar_type(), op, [&]<typename S>() {
    Tensor typed;
    const auto p = select_of<compute_t<S>>(op, s, kth, levels, threshold, inclusive, 1.0, typed);
    pack_scores_kernel<S><<<packing_blocks(s.numel()), kThreads, 0, current_stream(s)>>>(
        const_data<S>(s), s.numel(), words.on, words.negative, p);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return words.tensor;
}

Tensor unpack_mask(const Tensor& words, const std::vector<int64_t>& shape, ScalarType dtype) {
  const char* op = "unpack_mask";
  const DeviceGuard guard(words.get_device_index());
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const Words given(op, words, count, words);
  MASKCL_CHECK(given.bits.negative == nullptr || (dtype != ScalarType::Bool && dtype != ScalarType::Byte), op,
               ": dtype is ", torch::headeronly::toString(dtype), ", wanted a signed one for ternary words");
  const Tensor out = torch::stable::new_empty(words, shape, dtype);
  if (count == 0) return out;
  dispatch_mask(op, dtype, [&]<typename T>() {
    unpack_kernel<T><<<grid_for(ceil_div(count, vector_width<T>), 1 << 16), kThreads, 0, current_stream(words)>>>(
        given.bits, static_cast<T*>(out.mutable_data_ptr()), count);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

Tensor combine_words(const Tensor& a_in, const Tensor& b_in, const std::string& how_name) {
  const char* op = "combine_words";
  const DeviceGuard guard(a_in.get_device_index());
  const How how = parse_how(how_name);
  check_cuda(op, "b", b_in, a_in);
  MASKCL_CHECK(a_in.scalar_type() == ScalarType::Int && b_in.scalar_type() == ScalarType::Int, op, ": words are ",
               torch::headeronly::toString(a_in.scalar_type()), " and ",
               torch::headeronly::toString(b_in.scalar_type()), ", wanted int32");
  MASKCL_CHECK(a_in.numel() == b_in.numel() && a_in.dim() == b_in.dim(), op, ": b has ", b_in.numel(),
               " words, wanted ", a_in.numel());
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const Tensor result = torch::stable::empty_like(a);
  const int64_t count = a.numel();
  if (count > 0) {
    const uint32_t *p = const_data<uint32_t>(a), *q = const_data<uint32_t>(b);
    uint32_t* to = static_cast<uint32_t*>(result.mutable_data_ptr());
    auto launch = [&]<int V>() {
      combine_kernel<V>
          <<<grid_for(ceil_div(count, V), 1 << 16), kThreads, 0, current_stream(a)>>>(p, q, to, count, how);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (aligned16(p) && aligned16(q) && aligned16(to))
      launch.template operator()<4>();
    else
      launch.template operator()<1>();
  }
  Tensor out = torch::stable::empty_like(a_in);
  if (same_strides(out, result)) return result;
  torch::stable::copy_(out, result);
  return out;
}

Tensor popcount_words(const Tensor& words_in) {
  const char* op = "popcount_words";
  const DeviceGuard guard(words_in.get_device_index());
  const int64_t dims = words_in.dim();
  MASKCL_CHECK(dims >= 1 && words_in.scalar_type() == ScalarType::Int, op, ": words are ",
               torch::headeronly::toString(words_in.scalar_type()), " in ", dims, " dimensions, wanted int32 [.., W]");
  const Tensor words = torch::stable::contiguous(words_in);
  const int64_t width = words.size(dims - 1);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d + 1 < dims; ++d) shape.push_back(words.size(d));
  const Tensor out = torch::stable::new_zeros(words, shape, ScalarType::Long);
  const int64_t rows = out.numel();
  if (rows == 0 || width == 0) return out;
  const int64_t most = std::max<int64_t>(1, (int64_t{1} << 30) / rows);
  MASKCL_CHECK(rows < (int64_t{1} << 31), op, ": words has ", rows, " rows, a GPU takes 2^31 - 1");
  const uint32_t* from = const_data<uint32_t>(words);
  auto launch = [&]<int V>() {
    const int64_t blocks = std::min(most, static_cast<int64_t>(grid_for(ceil_div(width, 4 * V), 1024)));
    popcount_kernel<V><<<static_cast<unsigned>(rows * blocks), kThreads, 0, current_stream(words)>>>(
        from, width, blocks, static_cast<unsigned long long*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (aligned16(from) && width % 4 == 0)
    launch.template operator()<4>();
  else
    launch.template operator()<1>();
  return out;
}

void packed_select_into(const void* weight, const Bits& bits, void* out, const Block& block, size_t bytes,
                        cudaStream_t stream) {
  const int64_t count = block.count(), first = block.first();
  if (count == 0) return;
  dispatch_bytes(bytes, [&]<typename U>() {
    const U* from = static_cast<const U*>(weight) + first;
    U* to = static_cast<U*>(out);
    auto launch = [&]<int V>() {
      select_kernel<U, V><<<grid_for(ceil_div(count, V), 1 << 16), kThreads, 0, stream>>>(
          from, bits, to, count, first, block.columns, block.width);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (vectorizes(block, vector_width<U>) && aligned16(from) && aligned16(to))
      launch.template operator()<vector_width<U>>();
    else
      launch.template operator()<1>();
  });
}

Tensor packed_weight(const Tensor& weight, const Tensor& words) {
  const char* op = "packed_weight";
  const DeviceGuard guard(weight.get_device_index());
  const Words given(op, words, weight.numel(), weight);
  const Tensor w = torch::stable::contiguous(weight);  // the bits are in this order
  Tensor result = torch::stable::empty_like(w), out = torch::stable::empty_like(weight);
  dispatch_float(w.scalar_type(), op, [&]<typename T>() {
    packed_select_into(w.const_data_ptr(), given.bits, result.mutable_data_ptr(), whole(w.numel()), sizeof(T),
                       current_stream(w));
  });
  if (same_strides(out, result)) return result;
  torch::stable::copy_(out, result);
  return out;
}

Tensor packed_embedding(const Tensor& index_in, const Tensor& weight_in, const Tensor& words) {
  const char* op = "packed_embedding";
  const DeviceGuard guard(weight_in.get_device_index());
  check_cuda(op, "index", index_in, weight_in);
  MASKCL_CHECK(index_in.scalar_type() == ScalarType::Long && weight_in.dim() == 2, op, ": index is ",
               torch::headeronly::toString(index_in.scalar_type()), " and weight has ", weight_in.dim(),
               " dimensions, wanted int64 and [V, D]");
  const Words given(op, words, weight_in.numel(), weight_in);
  const Tensor index = torch::stable::contiguous(index_in), weight = torch::stable::contiguous(weight_in);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < index.dim(); ++d) shape.push_back(index.size(d));
  const int64_t width = weight.size(1), count = index.numel() * width;
  shape.push_back(width);
  const Tensor out = torch::stable::new_empty(weight, shape);
  if (count == 0) return out;
  dispatch_float(weight.scalar_type(), op, [&]<typename T>() {
    using U = typename BitsOf<sizeof(T)>::type;
    const U* from = const_data<U>(weight);
    U* to = static_cast<U*>(out.mutable_data_ptr());
    auto launch = [&]<int V>() {
      embedding_kernel<U, V><<<grid_for(ceil_div(count, V), 1 << 16), kThreads, 0, current_stream(weight)>>>(
          const_data<int64_t>(index), from, given.bits, to, count, width, weight.size(0));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (width % vector_width<U> == 0 && aligned16(from) && aligned16(to))
      launch.template operator()<vector_width<U>>();
    else
      launch.template operator()<1>();
  });
  return out;
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("pack_mask", TORCH_BOX(&maskcl::gpu::pack_mask));
  m.impl("pack_scores", TORCH_BOX(&maskcl::gpu::pack_scores));
  m.impl("unpack_mask", TORCH_BOX(&maskcl::gpu::unpack_mask));
  m.impl("combine_words", TORCH_BOX(&maskcl::gpu::combine_words));
  m.impl("popcount_words", TORCH_BOX(&maskcl::gpu::popcount_words));
  m.impl("packed_weight", TORCH_BOX(&maskcl::gpu::packed_weight));
  m.impl("packed_embedding", TORCH_BOX(&maskcl::gpu::packed_embedding));
}
