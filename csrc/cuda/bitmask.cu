// Weight masks of one bit (ternary: two) a weight on a GPU: packing, set operations, and weights and embeddings that
// read the bits. packed_linear is in packed_linear.cu.
#include <cassert>

#include "packing.cuh"

namespace maskcl::gpu {
namespace {

// --- words ----------------------------------------------------------------------------------------------------------

template <int V>
__global__ void __launch_bounds__(kThreads)
combine_kernel(const uint32_t* a, const uint32_t* b, uint32_t* out, int64_t count, Combine how) {
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    Vector<uint32_t, W> x = load<W>(a + at);
    const Vector<uint32_t, W> y = load<W>(b + at);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const uint32_t p = x.at[k], q = y.at[k];
      x.at[k] = how == Combine::both     ? p & q
                : how == Combine::either ? p | q
                : how == Combine::differ ? p ^ q
                                         : p & ~q;
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
select_kernel(const U* weight, Planes planes, U* out, int64_t count, int64_t first, int64_t columns, int64_t width) {
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    const int64_t from = place_in_weight(at, columns, width);
    Vector<U, W> w = load<W>(weight + from);
    apply_bits(w, planes, first + from);
    store(out + at, w);
  });
}

// count elements: rows of `width`, each weight row index[row]. Vectors do not cross rows: width is a multiple of V.
template <typename U, int V>
__global__ void __launch_bounds__(kThreads)
embedding_kernel(const int64_t* index, const U* weight, Planes planes, U* out, int64_t count, int64_t width,
                 int64_t rows) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V; at < count; at += step) {
    const Division row(at, width);
    const int64_t chosen = index[row.quotient];
    assert(chosen >= 0 && chosen < rows);
    const int64_t from = chosen * width + row.remainder;
    Vector<U, V> w = load<V>(weight + from);
    apply_bits(w, planes, from);
    store(out + at, w);
  }
}

}  // namespace

// --- ops ------------------------------------------------------------------------------------------------------------

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
    pack_mask_kernel<T><<<packing_blocks(m.numel()), kThreads, 0, current_stream(m)>>>(const_data<T>(m), words.on,
                                                                                      words.negative, m.numel());
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
        const_data<S>(s), words.on, words.negative, s.numel(), p);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return words.tensor;
}

Tensor unpack_mask(const Tensor& words, const std::vector<int64_t>& shape, ScalarType dtype) {
  const char* op = "unpack_mask";
  const DeviceGuard guard(words.get_device_index());
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  check_unpacked(op, words, shape, dtype);
  const Words given(op, words, count, words);
  const Tensor out = fresh(words, shape, dtype);
  if (count == 0) return out;
  dispatch_mask(op, dtype, [&]<typename T>() {
    unpack_kernel<T><<<grid_for(ceil_div(count, vector_width<T>), 1 << 16), kThreads, 0, current_stream(words)>>>(
        given.planes, data<T>(out), count);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

Tensor combine_words(const Tensor& a_in, const Tensor& b_in, const std::string& how_name) {
  const char* op = "combine_words";
  const DeviceGuard guard(a_in.get_device_index());
  const Combine how = parse_combine(how_name);
  check_cuda(op, "b", b_in, a_in);
  check_combinable(op, a_in, b_in);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const Tensor result = fresh_like(a);
  const int64_t count = a.numel();
  if (count > 0) {
    const uint32_t *p = const_data<uint32_t>(a), *q = const_data<uint32_t>(b);
    uint32_t* to = data<uint32_t>(result);
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
  return like_input(result, a_in);
}

Tensor popcount_words(const Tensor& words_in) {
  const char* op = "popcount_words";
  const DeviceGuard guard(words_in.get_device_index());
  const int64_t dims = words_in.dim();
  check_dtype(op, "words", words_in, ScalarType::Int);
  MASKCL_CHECK(dims >= 1, op, ": words is 0-d, wanted at least one dimension");
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

void packed_select_into(const void* weight, const Planes& planes, void* out, const Block& block, size_t bytes,
                        cudaStream_t stream) {
  const int64_t count = block.count(), first = block.first();
  if (count == 0) return;
  dispatch_bits(bytes, [&]<typename U>() {
    const U* from = static_cast<const U*>(weight) + first;
    U* to = static_cast<U*>(out);
    auto launch = [&]<int V>() {
      select_kernel<U, V><<<grid_for(ceil_div(count, V), 1 << 16), kThreads, 0, stream>>>(
          from, planes, to, count, first, block.columns, block.width);
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
  const Tensor out = fresh_like(w);
  dispatch_float(w.scalar_type(), op, [&]<typename T>() {
    packed_select_into(w.const_data_ptr(), given.planes, out.mutable_data_ptr(), whole(w.numel()), sizeof(T),
                       current_stream(w));
  });
  return like_input(out, weight);
}

Tensor packed_embedding(const Tensor& index_in, const Tensor& weight_in, const Tensor& words) {
  const char* op = "packed_embedding";
  const DeviceGuard guard(weight_in.get_device_index());
  check_cuda(op, "index", index_in, weight_in);
  check_embedding(op, index_in, weight_in, words);
  const Words given(op, words, weight_in.numel(), weight_in);
  const Tensor index = torch::stable::contiguous(index_in), weight = torch::stable::contiguous(weight_in);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < index.dim(); ++d) shape.push_back(index.size(d));
  const int64_t width = weight.size(1), count = index.numel() * width;
  shape.push_back(width);
  const Tensor out = fresh(weight, shape);
  if (count == 0) return out;
  dispatch_float(weight.scalar_type(), op, [&]<typename T>() {
    using U = typename BitsOf<sizeof(T)>::type;
    const U* from = const_data<U>(weight);
    U* to = data<U>(out);
    auto launch = [&]<int V>() {
      embedding_kernel<U, V><<<grid_for(ceil_div(count, V), 1 << 16), kThreads, 0, current_stream(weight)>>>(
          const_data<int64_t>(index), from, given.planes, to, count, width, weight.size(0));
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
