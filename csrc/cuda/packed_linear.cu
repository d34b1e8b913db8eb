// y = x (W m)^T + b with m in bits on a GPU. Few rows of x: the weight is read once, 16 bytes at a time, and one bit
// (ternary: two) a weight besides. More rows: blocks of the masked weight, multiplied by cuBLAS (see blocks.cuh).
#include <array>
#include <atomic>

#include "words.cuh"

namespace maskcl::gpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kWarps = kThreads / kWarp;
constexpr int kFewRows = 16;  // of x, that a tile of the tensor cores has

// x [batch, ins], weight [outs, ins], y [batch, outs]; bias is null where there is none.
template <typename T>
struct Product {
  const T* x;
  const T* weight;
  const T* bias;
  T* y;
  Planes planes;
  int64_t outs, ins;
  int batch;
};

template <typename T, typename C>
__device__ __forceinline__ void finish(const Product<T>& p, int n, int64_t out, C sum) {
  if (n >= p.batch || out >= p.outs) return;
  if (p.bias) sum += static_cast<C>(p.bias[out]);
  p.y[n * p.outs + out] = static_cast<T>(sum);
}

// --- tensor cores: bfloat16 and float16 -----------------------------------------------------------------------------

// d += a b for a [16, 16] and b [16, 8] in halves, in pairs, and d [16, 8] in float32, spread over a warp. With
// g = lane / 4 and t = lane % 4, a0 to a3 hold rows g, g + 8, g, g + 8 of a, from columns 2t, 2t, 2t + 8, 2t + 8 on; b0
// and b1 hold column g of b, from rows 2t and 2t + 8 on; d holds rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1.
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, BFloat16>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();  // not launched there
#endif
}

using Eight = Vector<uint32_t, 4>;  // eight halves, in pairs

// Two halves where their bits are 1, turned in sign where `negative`'s are.
__device__ __forceinline__ uint32_t select_pair(uint32_t pair, uint32_t on, uint32_t negative) {
  const uint32_t kept = (on & 1) * 0xffffu | (on >> 1 & 1) * 0xffff0000u;
  return (pair ^ ((negative & 1) << 15 | (negative >> 1 & 1) << 31)) & kept;
}

// A block has 8 * Tiles rows of the weight and all of x; its warps share the columns, 64 at a time, and are added up in
// order. The sum over columns may be taken in any order, so a lane's 16 bytes, eight columns of its row from 8t on, serve
// two multiplications as they are: one takes pairs 0 and 1 of x's and the weight's eights, the other pairs 2 and 3.
// Rows past the last are read from the last, as their sums are dropped: loads without branches all start at once.
template <typename T, int Tiles, bool Ternary>
__global__ void __launch_bounds__(kThreads) tensor_core_kernel(Product<T> p) {
  constexpr int kSteps = 2;  // of 32 columns
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (8 * Tiles);
  const T* low_row = p.x + (g < p.batch ? g : p.batch - 1) * p.ins;
  const T* high_row = p.x + (g + 8 < p.batch ? g + 8 : p.batch - 1) * p.ins;
  int64_t row[Tiles];
#pragma unroll
  for (int tile = 0; tile < Tiles; ++tile) {
    const int64_t wanted = first + tile * 8 + g;
    row[tile] = (wanted < p.outs ? wanted : p.outs - 1) * p.ins;
  }
  float sum[Tiles][4] = {};
  for (int64_t begin = warp * (32 * kSteps); begin < p.ins; begin += kWarps * 32 * kSteps) {
    Eight w[kSteps][Tiles], low[kSteps], high[kSteps] = {};
    uint32_t on[kSteps][Tiles], negative[kSteps][Tiles] = {};
    int64_t column[kSteps];
    bool inside[kSteps];  // of eight columns all or none: ins is a multiple of 8
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      column[step] = begin + step * 32 + t * 8;
      inside[step] = column[step] < p.ins;
      if (!inside[step]) column[step] = 0;
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        const int64_t at = row[tile] + column[step];
        w[step][tile] = *reinterpret_cast<const Eight*>(p.weight + at);
        on[step][tile] = bits_from(p.planes.on, at);
        if constexpr (Ternary) negative[step][tile] = bits_from(p.planes.negative, at);
      }
      low[step] = *reinterpret_cast<const Eight*>(low_row + column[step]);
    }
    if (p.batch > 8) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) high[step] = *reinterpret_cast<const Eight*>(high_row + column[step]);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {  // past the last column both factors are 0: x may not be finite
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (!inside[step]) low[step].at[k] = high[step].at[k] = 0;
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile)
        if (!inside[step]) on[step][tile] = 0;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        const uint32_t(&a)[4] = low[step].at, (&c)[4] = high[step].at;
        uint32_t b[4];
#pragma unroll
        for (int k = 0; k < 4; ++k)
          b[k] = select_pair(w[step][tile].at[k], on[step][tile] >> 2 * k, negative[step][tile] >> 2 * k);
        multiply<T>(sum[tile], a[0], c[0], a[1], c[1], b[0], b[1]);
        multiply<T>(sum[tile], a[2], c[2], a[3], c[3], b[2], b[3]);
      }
  }
  __shared__ float sums[kWarps][Tiles * 4][kWarp];
#pragma unroll
  for (int k = 0; k < Tiles * 4; ++k) sums[warp][k][lane] = sum[k / 4][k % 4];
  __syncthreads();
  for (int i = threadIdx.x; i < Tiles * 4 * kWarp; i += kThreads) {
    const int from = i % kWarp, k = i / kWarp;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][k][from];
    finish(p, from / 4 + (k % 4 >= 2 ? 8 : 0), first + k / 4 * 8 + from % 4 * 2 + k % 2, total);
  }
}

// --- every dtype ----------------------------------------------------------------------------------------------------

// A warp has `Outs` rows of the weight and walks along them, V columns a lane; rows past the last are read from the last.
// x passes through shared memory, as float (double), a stretch of columns at a time. Batch is p.batch rounded up.
template <typename T, int Batch, int V, int Outs>
__global__ void __launch_bounds__(kThreads) rows_kernel(Product<T> p) {
  using C = compute_t<T>;
  using U = typename BitsOf<sizeof(T)>::type;
  constexpr int kStretch = 4096 / Batch;  // columns: a multiple of a warp's
  __shared__ alignas(16) C x[Batch][kStretch];
  const int lane = threadIdx.x % kWarp;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * Outs;
  // A load too many costs less than a branch.
  const uint32_t* signs = p.planes.negative ? p.planes.negative : p.planes.on;
  const uint32_t signed_mask = p.planes.negative ? ~0u : 0u;
  C sum[Outs][Batch] = {};
  for (int64_t begin = 0; begin < p.ins; begin += kStretch) {
    __syncthreads();  // the stretch before has been read
#pragma unroll 2
    for (int i = threadIdx.x; i < Batch * kStretch; i += kThreads) {
      const int n = i / kStretch, column = i % kStretch;
      const bool inside = n < p.batch && begin + column < p.ins;
      x[n][column] = inside ? static_cast<C>(p.x[n * p.ins + begin + column]) : C(0);
    }
    __syncthreads();
    const int64_t end = p.ins - begin < kStretch ? p.ins - begin : kStretch;
    for (int64_t column = lane * V; column < end; column += kWarp * V) {
      Vector<U, V> raw[Outs];
      uint32_t on[Outs], negative[Outs];
#pragma unroll
      for (int r = 0; r < Outs; ++r) {
        const int64_t row = first + r < p.outs ? first + r : p.outs - 1, at = row * p.ins + begin + column;
        raw[r] = load<V>(reinterpret_cast<const U*>(p.weight) + at);
        on[r] = bits_from(p.planes.on, at);
        negative[r] = bits_from(signs, at) & signed_mask;
      }
      C w[Outs][V];
#pragma unroll
      for (int r = 0; r < Outs; ++r)
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const U bits = maskcl::select_bits(raw[r].at[k], on[r] >> k & 1, negative[r] >> k & 1);
          T value;
          memcpy(&value, &bits, sizeof(T));
          w[r][k] = static_cast<C>(value);
        }
#pragma unroll
      for (int n = 0; n < Batch; ++n) {
        const Vector<C, V> xs = load<V>(&x[n][column]);
#pragma unroll
        for (int r = 0; r < Outs; ++r)
#pragma unroll
          for (int k = 0; k < V; ++k) sum[r][n] += w[r][k] * xs.at[k];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < Outs; ++r)
#pragma unroll
    for (int n = 0; n < Batch; ++n) {
      const C total = warp_sum(sum[r][n]);
      if (lane == n) finish(p, n, first + r, total);
    }
}

// --- launches -------------------------------------------------------------------------------------------------------

// Whether the code that is loaded on the device multiplies on tensor cores: what was compiled for a GPU before 8.0 does
// not, wherever it runs. Asked once a device.
bool has_tensor_cores(const Tensor& on) {
  enum Answer : char { unknown, yes, no };
  static std::array<std::atomic<Answer>, 64> answers;
  const auto device = static_cast<size_t>(on.get_device_index());
  if (device < answers.size() && answers[device] != unknown) return answers[device] == yes;
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, tensor_core_kernel<BFloat16, 1, false>);
  MASKCL_CHECK(error == cudaSuccess, "packed_linear: ", cudaGetErrorString(error));
  const bool has = attributes.ptxVersion >= 80;
  if (device < answers.size()) answers[device] = has ? yes : no;
  return has;
}

unsigned blocks_for(int64_t outs, int64_t rows) {
  const int64_t blocks = ceil_div(outs, rows);
  MASKCL_CHECK(blocks < (int64_t{1} << 31), "packed_linear: ", outs, " outputs, a GPU takes fewer than 2^31 blocks");
  return static_cast<unsigned>(blocks);
}

template <typename T, int Tiles>
void run_tiles(const Product<T>& p, cudaStream_t stream) {
  const unsigned blocks = blocks_for(p.outs, 8 * Tiles);
  if (p.planes.negative)
    tensor_core_kernel<T, Tiles, true><<<blocks, kThreads, 0, stream>>>(p);
  else
    tensor_core_kernel<T, Tiles, false><<<blocks, kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// More rows a block read x less often; fewer keep all multiprocessors busy where there are few rows.
template <typename T>
void run_tensor_cores(const Product<T>& p, cudaStream_t stream) {
  if (p.outs >= 16384) return run_tiles<T, 4>(p, stream);
  if (p.outs >= 4096) return run_tiles<T, 2>(p, stream);
  run_tiles<T, 1>(p, stream);
}

template <typename T, int V, int Outs>
void run_rows(const Product<T>& p, cudaStream_t stream) {
  const unsigned blocks = blocks_for(p.outs, kWarps * Outs);
  if (p.batch == 1)
    rows_kernel<T, 1, V, Outs><<<blocks, kThreads, 0, stream>>>(p);
  else if (p.batch <= 4)
    rows_kernel<T, 4, V, Outs><<<blocks, kThreads, 0, stream>>>(p);
  else
    rows_kernel<T, kFewRows, V, Outs><<<blocks, kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void run_few(const Product<T>& p, const Tensor& on) {
  const cudaStream_t stream = current_stream(on);
  const bool vectors = p.ins % vector_width<T> == 0 && aligned16(p.x) && aligned16(p.weight);
  if constexpr (sizeof(T) == 2) {
    if (vectors && has_tensor_cores(on)) return run_tensor_cores(p, stream);
  } else if (vectors) {
    return p.outs >= 4096 ? run_rows<T, vector_width<T>, 4>(p, stream) : run_rows<T, vector_width<T>, 1>(p, stream);
  }
  run_rows<T, 1, 1>(p, stream);
}

}  // namespace

Tensor packed_linear(const Tensor& x_in, const Tensor& weight, const Tensor& words,
                     const std::optional<Tensor>& bias_in) {
  const char* op = "packed_linear";
  const DeviceGuard guard(x_in.get_device_index());
  check_cuda(op, "weight", weight, x_in);
  check_product(op, x_in, weight, bias_in);
  const Words given(op, words, weight.numel(), x_in);
  const Tensor x = torch::stable::contiguous(x_in), w = torch::stable::contiguous(weight);
  const int64_t batch = x.size(0), outs = w.size(0), ins = w.size(1);
  std::optional<Tensor> bias;
  if (bias_in) {
    check_cuda(op, "bias", *bias_in, x_in);
    bias = torch::stable::contiguous(*bias_in);
  }
  if (batch > kFewRows)
    return linear_by_rows(x, w, bias, [&](const Block& block, const Tensor& out) {
      packed_select_into(w.const_data_ptr(), given.planes, out.mutable_data_ptr(), block, w.element_size(),
                         current_stream(x));
    });
  const Tensor y = fresh(x, {batch, outs});
  if (y.numel() == 0) return y;
  dispatch_float(x.scalar_type(), op, [&]<typename T>() {
    run_few(Product<T>{static_cast<const T*>(x.const_data_ptr()), static_cast<const T*>(w.const_data_ptr()),
                       bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr,
                       static_cast<T*>(y.mutable_data_ptr()), given.planes, outs, ins, static_cast<int>(batch)},
            x);
  });
  return y;
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) { m.impl("packed_linear", TORCH_BOX(&maskcl::gpu::packed_linear)); }
