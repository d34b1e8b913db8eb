// Masks of single weights from scores on a GPU: m(s), W m(s) and their backward, one pass each, and linear layers whose
// masked weight exists a block at a time. The formulas are in csrc/formulas.h.
#include "blocks.cuh"
#include "select.cuh"

namespace maskcl::gpu {
namespace {

// Elements that a thread takes at a time: 16 bytes of the narrower dtype.
template <typename T, typename S>
constexpr int pair_width = vector_width<T> > vector_width<S> ? vector_width<T> : vector_width<S>;

// --- kernels --------------------------------------------------------------------------------------------------------

template <typename S, int V>
__global__ void __launch_bounds__(kThreads)
mask_kernel(const S* scores, S* out, int64_t count, Select<compute_t<S>> p) {
  using C = compute_t<S>;
  const C threshold = p.threshold.get();
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    Vector<S, W> value = load<W>(scores + at);
    dispatch_levels(p.levels, [&]<Levels L>() {
#pragma unroll
      for (int k = 0; k < W; ++k)
        value.at[k] = static_cast<S>(maskcl::mask_value<L>(static_cast<C>(value.at[k]), threshold, p.scale));
    });
    store(out + at, value);
  });
}

// W m of a block of a weight; weight and scores point to the block's first element.
template <typename T, typename S, int V>
__global__ void __launch_bounds__(kThreads)
select_kernel(const T* weight, const S* scores, T* out, int64_t count, int64_t columns, int64_t width,
              Select<compute_t<S>> p) {
  using C = compute_t<T>;
  using D = compute_t<S>;
  const D threshold = p.threshold.get();
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    const int64_t from = place_in_weight(at, columns, width);
    Vector<T, W> w = load<W>(weight + from);
    const Vector<S, W> s = load<W>(scores + from);
    dispatch_levels(p.levels, [&]<Levels L>() {
#pragma unroll
      for (int k = 0; k < W; ++k)
        w.at[k] = static_cast<T>(
            maskcl::select_weight<L>(static_cast<C>(w.at[k]), static_cast<D>(s.at[k]), threshold, p.scale));
    });
    store(out + at, w);
  });
}

// dW = g m and ds = g W (times the slope); null where not wanted. A null weight stands for ones. `grad` may be dscores
// or dweight: each element is read before it is written, by the same thread.
template <typename G, typename T, typename S, int V>
__global__ void __launch_bounds__(kThreads)
backward_kernel(const G* grad, const T* weight, const S* scores, T* dweight, S* dscores, int64_t count,
                Select<compute_t<S>> p) {
  using C = compute_t<T>;
  using D = compute_t<S>;
  const D threshold = p.threshold.get();
  const bool soft = p.levels == Levels::soft;
  for_vectors<V>(count, [&]<int W>(int64_t at) {
    const Vector<G, W> g = load<W>(grad + at);
    Vector<S, W> s{};
    if (dweight || soft) s = load<W>(scores + at);
    if (dweight) {
      Vector<T, W> out;
      dispatch_levels(p.levels, [&]<Levels L>() {
#pragma unroll
        for (int k = 0; k < W; ++k)
          out.at[k] = static_cast<T>(
              maskcl::select_weight<L>(static_cast<C>(g.at[k]), static_cast<D>(s.at[k]), threshold, p.scale));
      });
      store(dweight + at, out);
    }
    if (!dscores) return;
    Vector<T, W> w;
    if (weight) w = load<W>(weight + at);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      C product = static_cast<C>(g.at[k]);
      if (weight) product *= static_cast<C>(w.at[k]);
      if (soft)
        product *= static_cast<C>(maskcl::score_slope<Levels::soft>(static_cast<D>(s.at[k]), threshold, p.scale));
      s.at[k] = static_cast<S>(product);
    }
    store(dscores + at, s);
  });
}

// --- launches -------------------------------------------------------------------------------------------------------

template <typename T, typename S>
void select_into(const T* weight, const S* scores, T* out, const Block& block, const Select<compute_t<S>>& p,
                 cudaStream_t stream) {
  constexpr int widest = pair_width<T, S>;
  launch_vectors<widest>(block.count(), vectorizes(block, widest), {weight, scores, out}, [&]<int V>(unsigned blocks) {
    select_kernel<T, S, V><<<blocks, kThreads, 0, stream>>>(weight + block.first(), scores + block.first(), out,
                                                            block.count(), block.columns, block.width, p);
  });
}

template <typename G, typename T, typename S>
void backward_into(const G* grad, const T* weight, const S* scores, T* dweight, S* dscores, int64_t count,
                   const Select<compute_t<S>>& p, cudaStream_t stream) {
  constexpr int widest = pair_width<T, S>;
  launch_vectors<widest>(count, true, {grad, weight, scores, dweight, dscores}, [&]<int V>(unsigned blocks) {
    backward_kernel<G, T, S, V><<<blocks, kThreads, 0, stream>>>(grad, weight, scores, dweight, dscores, count, p);
  });
}

void check_linear(const char* op, const Tensor& x, const Tensor& weight, const Tensor& scores,
                  const std::optional<Tensor>& bias) {
  check_cuda(op, "weight", weight, x);
  check_product(op, x, weight, bias);
  check_same_shape(op, "scores", scores, weight, "weight");
  if (bias) check_cuda(op, "bias", *bias, x);
}

}  // namespace

Tensor weight_mask(const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels, double threshold,
                   bool inclusive, double scale) {
  const char* op = "weight_mask";
  const DeviceGuard guard(scores.get_device_index());
  const Tensor s = dense(scores), out = fresh_like(s);
  dispatch_float(s.scalar_type(), op, [&]<typename S>() {
    Tensor typed;
    const auto p = select_of<compute_t<S>>(op, scores, kth, levels, threshold, inclusive, scale, typed);
    const S* from = const_data<S>(s);
    S* to = data<S>(out);
    launch_vectors<vector_width<S>>(s.numel(), true, {from, to}, [&]<int V>(unsigned blocks) {
      mask_kernel<S, V><<<blocks, kThreads, 0, current_stream(s)>>>(from, to, s.numel(), p);
    });
  });
  return like_input(out, scores);
}

Tensor masked_weight(const Tensor& weight, const Tensor& scores, const std::optional<Tensor>& kth,
                     const std::string& levels, double threshold, bool inclusive, double scale) {
  const char* op = "masked_weight";
  const DeviceGuard guard(weight.get_device_index());
  check_same_shape(op, "scores", scores, weight, "weight");
  const Tensor w = dense(weight), out = fresh_like(w);
  const Tensor s = in_order_of(scores_for(op, scores, w.scalar_type()), w);
  dispatch_pair(op, w.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    Tensor typed;
    const auto p = select_of<compute_t<S>>(op, scores, kth, levels, threshold, inclusive, scale, typed);
    select_into<T, S>(const_data<T>(w), const_data<S>(s), data<T>(out), whole(w.numel()), p, current_stream(w));
  });
  return like_input(out, weight);
}

std::tuple<Tensor, Tensor> masked_weight_backward(const Tensor& grad, const std::optional<Tensor>& weight,
                                                  const Tensor& scores, const std::optional<Tensor>& kth,
                                                  const std::string& levels, double threshold, bool inclusive,
                                                  double scale, bool want_weight, bool want_scores) {
  const char* op = "masked_weight_backward";
  const DeviceGuard guard(grad.get_device_index());
  check_same_shape(op, "scores", scores, grad, "grad");
  const ScalarType dtype = grad.scalar_type();
  const Tensor g = dense(grad), s = in_order_of(scores_for(op, scores, dtype), g);
  Tensor w;
  if (weight) {
    check_same_shape(op, "weight", *weight, grad, "grad");
    w = in_order_of(in_dtype(*weight, dtype), g);
  }
  Tensor dweight = want_weight ? fresh_like(g) : empty_vector(grad, 0, dtype);
  Tensor dscores = want_scores ? fresh_like(s) : empty_vector(scores, 0, s.scalar_type());
  dispatch_pair(op, dtype, s.scalar_type(), [&]<typename T, typename S>() {
    Tensor typed;
    const auto p = select_of<compute_t<S>>(op, scores, kth, levels, threshold, inclusive, scale, typed);
    backward_into<T, T, S>(const_data<T>(g), weight ? const_data<T>(w) : nullptr, const_data<S>(s),
                           want_weight ? data<T>(dweight) : nullptr, want_scores ? data<S>(dscores) : nullptr,
                           want_weight || want_scores ? g.numel() : 0, p, current_stream(g));
  });
  if (want_weight) dweight = like_input(dweight, grad);
  dscores = in_dtype(dscores, scores.scalar_type());
  if (want_scores) dscores = like_input(dscores, scores);
  return {dweight, dscores};
}

Tensor piggyback_linear(const Tensor& x_in, const Tensor& weight, const Tensor& scores,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& kth, const std::string& levels,
                        double threshold, bool inclusive, double scale) {
  const char* op = "piggyback_linear";
  const DeviceGuard guard(x_in.get_device_index());
  check_linear(op, x_in, weight, scores, bias);
  const Tensor x = torch::stable::contiguous(x_in), w = torch::stable::contiguous(weight);
  const Tensor s = torch::stable::contiguous(scores_for(op, scores, w.scalar_type()));
  Tensor y;
  dispatch_pair(op, w.scalar_type(), s.scalar_type(), [&]<typename T, typename S>() {
    Tensor typed;
    const auto p = select_of<compute_t<S>>(op, scores, kth, levels, threshold, inclusive, scale, typed);
    y = linear_by_rows(x, w, bias, [&](const Block& block, const Tensor& out) {
      select_into<T, S>(const_data<T>(w), const_data<S>(s), data<T>(out), block, p, current_stream(x));
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> piggyback_linear_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& weight, const Tensor& scores,
    const std::optional<Tensor>& kth, const std::string& levels, double threshold, bool inclusive, double scale,
    bool want_x, bool want_weight, bool want_scores) {
  const char* op = "piggyback_linear_backward";
  const DeviceGuard guard(x_in.get_device_index());
  check_linear(op, x_in, weight, scores, std::nullopt);
  check_cuda(op, "grad", grad_in, x_in);
  check_product_grad(op, grad_in, x_in, weight);
  const ScalarType dtype = weight.scalar_type(), sums = compute_dtype(dtype);
  const Tensor grad = to_dtype(grad_in, dtype), x = torch::stable::contiguous(x_in);
  const Tensor w = torch::stable::contiguous(weight), s = torch::stable::contiguous(scores_for(op, scores, dtype));
  const auto made = [](bool wanted, const Tensor& like, int64_t rows, int64_t columns) {
    return wanted ? fresh(like, {rows, columns}) : fresh(like, {0});
  };
  const Tensor dx = made(want_x, x, x.size(0), w.size(1));
  const Tensor dweight = made(want_weight, w, w.size(0), w.size(1));
  Tensor dscores = made(want_scores, s, w.size(0), w.size(1));
  dispatch_pair(op, dtype, s.scalar_type(), [&]<typename T, typename S>() {
    using G = compute_t<T>;
    Tensor typed;
    const auto p = select_of<compute_t<S>>(op, scores, kth, levels, threshold, inclusive, scale, typed);
    const cudaStream_t stream = current_stream(x);
    if (want_x)
      matmul_by_columns(grad, w, dx, [&](const Block& block, const Tensor& out) {
        select_into<T, S>(const_data<T>(w), const_data<S>(s), data<T>(out), block, p, stream);
      });
    if (!want_weight && !want_scores) return;
    // G is written where it is used, and multiplied there, if that has its dtype.
    std::optional<Tensor> product;
    if (want_scores && std::is_same_v<S, G>)
      product = dscores;
    else if (want_weight && std::is_same_v<T, G>)
      product = dweight;
    weight_grad_by_rows(grad, x, sums, product, [&](const Block& block, const Tensor& part) {
      const int64_t at = block.first();
      backward_into<G, T, S>(const_data<G>(part), const_data<T>(w) + at, const_data<S>(s) + at,
                             want_weight ? data<T>(dweight) + at : nullptr,
                             want_scores ? data<S>(dscores) + at : nullptr, block.count(), p, stream);
    });
  });
  return {dx, dweight, in_dtype(dscores, scores.scalar_type())};
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("weight_mask", TORCH_BOX(&maskcl::gpu::weight_mask));
  m.impl("masked_weight", TORCH_BOX(&maskcl::gpu::masked_weight));
  m.impl("masked_weight_backward", TORCH_BOX(&maskcl::gpu::masked_weight_backward));
  m.impl("piggyback_linear", TORCH_BOX(&maskcl::gpu::piggyback_linear));
  m.impl("piggyback_linear_backward", TORCH_BOX(&maskcl::gpu::piggyback_linear_backward));
}
