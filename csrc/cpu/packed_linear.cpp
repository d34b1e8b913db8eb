// x (W m)^T + b with m in bits: of few rows of x by dot products, which take the time of reading the weight; of more by
// row blocks.

#include "made_rows.h"
#include "words.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kFewRows = 16;  // of x

// Eight lanes, which the compiler maps to what the instruction set has. (Vectors go by reference: by value they would
// have another calling convention in each clone.)
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));

MASKCL_INLINE void load(const float* from, Floats& to) { memcpy(&to, from, sizeof to); }
MASKCL_INLINE void load(const BFloat16* from, Floats& to) {
  Halves upper;
  memcpy(&upper, from, sizeof upper);
  const Ints wide = __builtin_convertvector(upper, Ints) << 16;
  memcpy(&to, &wide, sizeof to);
}
MASKCL_INLINE void load(const Half* from, Floats& to) {
  for (int j = 0; j < 8; ++j) to[j] = static_cast<float>(from[j]);
}

template <typename T>
MASKCL_INLINE float selected(T weight, uint32_t on, uint32_t negative) {
  return on & 1 ? (negative & 1 ? -static_cast<float>(weight) : static_cast<float>(weight)) : 0.0f;
}

// y[o][r] = row o of the weight times row r of x: each weight and each of its bits is read once. Several rows of the
// weight at once, as memory answers several readers faster than one; the first is at `w`, its bits start at `bit`.
template <int Outs, int Rows, bool Ternary, typename T>
MASKCL_INLINE void dot_tile(const T* x, const T* w, Planes planes, int64_t bit, int64_t ins, int64_t count, float* y) {
  // A lane's sum waits for the one before it: several where rows are few. By Rows alone, so that a sum's order does not
  // depend on how the rows of the weight are shared out to threads.
  constexpr int kSums = Rows == 1 || Rows == 4 ? 2 : 1;
  const Ints lanes = {31, 30, 29, 28, 27, 26, 25, 24};  // shifts that bring a lane's bit to the sign
  Floats sums[Outs][Rows][kSums] = {};
  float rest[Outs][Rows] = {};
  int64_t i = 0;
  for (; i + kWord <= ins; i += kWord) {
    MASKCL_UNROLL
    for (int o = 0; o < Outs; ++o) {
      const int64_t at = bit + o * ins + i;
      const Ints on = Ints{} + static_cast<int32_t>(word_at(planes.on, at, count));
      const Ints negative = Ternary ? Ints{} + static_cast<int32_t>(word_at(planes.negative, at, count)) : Ints{};
      MASKCL_UNROLL
      for (int q = 0; q < 4; ++q) {
        Floats weights;
        load(w + o * ins + i + 8 * q, weights);
        Ints pattern;
        memcpy(&pattern, &weights, sizeof pattern);
        if (Ternary) pattern ^= (negative << (lanes - 8 * q)) & INT32_MIN;
        pattern &= (on << (lanes - 8 * q)) >> 31;
        memcpy(&weights, &pattern, sizeof pattern);
        MASKCL_UNROLL
        for (int r = 0; r < Rows; ++r) {
          Floats other;
          load(x + r * ins + i + 8 * q, other);
          sums[o][r][q % kSums] += weights * other;
        }
      }
    }
  }
  for (int o = 0; o < Outs && i < ins; ++o) {
    const uint32_t on = word_at(planes.on, bit + o * ins + i, count);
    const uint32_t negative = Ternary ? word_at(planes.negative, bit + o * ins + i, count) : 0;
    for (int j = 0; i + j < ins; ++j)
      for (int r = 0; r < Rows; ++r)
        rest[o][r] += selected(w[o * ins + i + j], on >> j, negative >> j) * static_cast<float>(x[r * ins + i + j]);
  }
  MASKCL_UNROLL
  for (int o = 0; o < Outs; ++o) {
    MASKCL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      Floats sum = sums[o][r][0];
      if (kSums == 2) sum += sums[o][r][kSums - 1];
      for (int j = 0; j < 8; ++j) rest[o][r] += sum[j];
      y[o * kFewRows + r] = rest[o][r];
    }
  }
}

template <int Outs, int Rows, typename T>
MASKCL_INLINE void dot_rows(const T* x, const T* w, Planes planes, int64_t bit, int64_t ins, int64_t count, float* y) {
  if (planes.negative)
    dot_tile<Outs, Rows, true>(x, w, planes, bit, ins, count, y);
  else
    dot_tile<Outs, Rows, false>(x, w, planes, bit, ins, count, y);
}

// `Outs` rows of the weight times all rows of x, some at a time while the weight's are in the first-level cache.
template <int Outs, typename T>
MASKCL_INLINE void dot_all(const T* x, int64_t batch, const T* w, Planes planes, int64_t bit, int64_t ins, int64_t count,
                           float* y) {
  int64_t r = 0;
  if constexpr (Outs == 1) {
    for (; batch - r >= 8; r += 8) dot_rows<1, 8>(x + r * ins, w, planes, bit, ins, count, y + r);
    for (; batch - r >= 4; r += 4) dot_rows<1, 4>(x + r * ins, w, planes, bit, ins, count, y + r);
  }
  for (; batch - r >= 2; r += 2) dot_rows<Outs, 2>(x + r * ins, w, planes, bit, ins, count, y + r);
  if (r < batch) dot_rows<Outs, 1>(x + r * ins, w, planes, bit, ins, count, y + r);
}

// Rows [begin, end) of the weight times all rows of x.
template <typename T>
MASKCL_INLINE void dot_range(const T* x, int64_t batch, const T* w, Planes planes, const T* bias, T* y, int64_t begin,
                             int64_t end, int64_t outs, int64_t ins, int64_t count) {
  constexpr int64_t kOuts = 4;
  float sums[kOuts * kFewRows];
  for (int64_t o = begin; o < end;) {
    const int64_t some = batch <= 3 && end - o >= kOuts ? kOuts : 1;
    if (some == kOuts)
      dot_all<kOuts>(x, batch, w + o * ins, planes, o * ins, ins, count, sums);
    else
      dot_all<1>(x, batch, w + o * ins, planes, o * ins, ins, count, sums);
    for (int64_t k = 0; k < some; ++k, ++o)
      for (int64_t r = 0; r < batch; ++r)
        y[r * outs + o] = static_cast<T>(sums[k * kFewRows + r] + (bias ? static_cast<float>(bias[o]) : 0.0f));
  }
}

// Cloned functions cannot be templates, so each dtype names its own.
#define MASKCL_DOT(CLONES, T)                                                                                          \
  CLONES void run_dot(const T* x, int64_t batch, const T* w, Planes planes, const T* bias, T* y, int64_t begin,        \
                      int64_t end, int64_t outs, int64_t ins, int64_t count) {                                         \
    dot_range<T>(x, batch, w, planes, bias, y, begin, end, outs, ins, count);                                          \
  }
MASKCL_DOT(MASKCL_CLONES, float)
MASKCL_DOT(MASKCL_CLONES, BFloat16)
MASKCL_DOT(, Half)

template <typename T>
Tensor few_rows(const Tensor& x, const Tensor& w, Planes planes, const std::optional<Tensor>& bias) {
  const int64_t batch = x.size(0), outs = w.size(0), ins = w.size(1);
  const Tensor y = fresh(x, {batch, outs});
  const T *from = const_data<T>(x), *weight = const_data<T>(w), *added = bias ? const_data<T>(*bias) : nullptr;
  T* to = data<T>(y);
  parallel(outs, ins, [&](int64_t begin, int64_t end) {
    run_dot(from, batch, weight, planes, added, to, begin, end, outs, ins, w.numel());
  });
  return y;
}

Tensor packed_linear_cpu(const Tensor& x_in, const Tensor& weight, const Tensor& words_in,
                         const std::optional<Tensor>& bias_in) {
  check_product("packed_linear", x_in, weight, bias_in);
  check_words("packed_linear", words_in, weight.numel());
  const Tensor x = torch::stable::contiguous(x_in), w = torch::stable::contiguous(weight);
  const Tensor words = torch::stable::contiguous(words_in);
  std::optional<Tensor> bias;
  if (bias_in) bias = torch::stable::contiguous(*bias_in);
  const Planes planes = planes_of(words);
  if (x.size(0) > 0 && x.size(0) <= kFewRows && x.scalar_type() != ScalarType::Double) {
    Tensor y;
    dispatch_float(x.scalar_type(), "packed_linear", [&]<typename T>() {
      if constexpr (!std::is_same_v<T, double>) y = few_rows<T>(x, w, planes, bias);
    });
    return y;
  }
  const int64_t ins = w.size(1);
  // As of a mask that is trained, so that its last outputs keep their bits when it is packed.
  if (forward_by_made_rows(x, w)) {
    const Tensor y = fresh(x, {x.size(0), w.size(0)});
    made_rows_linear(x, bias, y, [&](const Block& block, float* to, int64_t stride) {
      for (int64_t r = 0; r < block.rows; ++r)
        packed_select_into(w, planes, to + r * stride, (block.row + r) * ins + block.column, block.columns);
    });
    return y;
  }
  return linear_by_rows(x, w, bias, [&](const Block& block, const Tensor& out) {
    packed_select_into(w, planes, out.mutable_data_ptr(), block.row * ins, block.rows * ins);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) { m.impl("packed_linear", TORCH_BOX(&packed_linear_cpu)); }

}  // namespace maskcl
