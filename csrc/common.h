// What the kernels of every device share: argument checks, dtype dispatch, memory layout around a channel.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "formulas.h"

// Raises RuntimeError with the sentence alone: STD_TORCH_CHECK puts the path of this file in front.
#define MASKCL_CHECK(condition, ...)                \
  do {                                              \
    if (!(condition)) ::maskcl::fail(__VA_ARGS__);  \
  } while (false)

namespace maskcl {

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream sentence;
  (sentence << ... << args);
  throw std::runtime_error(sentence.str());
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Arithmetic is float32 for every dtype but float64.
template <typename T>
struct compute {
  using type = float;
};
template <>
struct compute<double> {
  using type = double;
};
template <typename T>
using compute_t = typename compute<T>::type;

// Runs body<T>() for the C++ type T of a floating dtype.
template <typename F>
void dispatch_float(ScalarType dtype, const char* op, F&& body) {
  switch (dtype) {
    case ScalarType::Float: return body.template operator()<float>();
    case ScalarType::Double: return body.template operator()<double>();
    case ScalarType::BFloat16: return body.template operator()<torch::headeronly::BFloat16>();
    case ScalarType::Half: return body.template operator()<torch::headeronly::Half>();
    default: MASKCL_CHECK(false, op, ": found dtype ", torch::headeronly::toString(dtype), ", wanted a floating dtype");
  }
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Fresh contiguous memory where `like` is, of its dtype or of another. By the C function: torch::stable::new_empty goes
// through the dispatcher by name, with every argument in a box, and costs as much as a small layer's kernel.
inline Tensor fresh(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    std::optional<ScalarType> dtype = std::nullopt) {
  constexpr size_t kDimensions = 8;
  if (sizes.size() > kDimensions) return torch::stable::new_empty(like, sizes, dtype);
  int64_t strides[kDimensions] = {}, stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) strides[d] = stride, stride *= std::max<int64_t>(sizes[d], 1);
  int32_t device = 0, index = 0, code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  if (dtype)
    code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  else
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &code));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides, code,
                                                  device, index, &made));
  return Tensor(made);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An unsigned type of an element's size, for what moves elements and does no arithmetic.
template <size_t Size>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = uint16_t;
};
template <>
struct BitsOf<4> {
  using type = uint32_t;
};
template <>
struct BitsOf<8> {
  using type = uint64_t;
};

// Runs body<U>() for the unsigned type of an element's size.
template <typename F>
void dispatch_bits(size_t bytes, F&& body) {
  if (bytes == 2) return body.template operator()<uint16_t>();
  if (bytes == 4) return body.template operator()<uint32_t>();
  body.template operator()<uint64_t>();
}

inline ScalarType compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Activation parse_activation(const std::string& name) {
  static const std::pair<const char*, Activation> names[] = {
      {"identity", Activation::identity}, {"relu", Activation::relu},       {"gelu", Activation::gelu},
      {"gelu_tanh", Activation::gelu_tanh}, {"silu", Activation::silu},     {"tanh", Activation::tanh},
      {"sigmoid", Activation::sigmoid},   {"leaky_relu", Activation::leaky_relu}};
  for (const auto& [key, value] : names)
    if (name == key) return value;
  MASKCL_CHECK(false, "activation: found '", name, "', which is not one of maskcl's");
  return Activation::identity;
}

// Runs body<A>() for a runtime activation.
template <typename F>
MASKCL_HD void dispatch_activation(Activation activation, F&& body) {
  switch (activation) {
    case Activation::identity: return body.template operator()<Activation::identity>();
    case Activation::relu: return body.template operator()<Activation::relu>();
    case Activation::gelu: return body.template operator()<Activation::gelu>();
    case Activation::gelu_tanh: return body.template operator()<Activation::gelu_tanh>();
    case Activation::silu: return body.template operator()<Activation::silu>();
    case Activation::tanh: return body.template operator()<Activation::tanh>();
    case Activation::sigmoid: return body.template operator()<Activation::sigmoid>();
    case Activation::leaky_relu: return body.template operator()<Activation::leaky_relu>();
  }
}

inline Rule parse_rule(const std::string& name) {
  if (name == "hat") return Rule::hat;
  if (name == "const") return Rule::constant;
  if (name == "adahat") return Rule::adahat;
  MASKCL_CHECK(name == "random", "rule: found '", name, "', wanted hat, const, adahat or random");
  return Rule::random;
}

inline Aggregation parse_aggregation(const std::string& name) {
  if (name == "min") return Aggregation::min;
  if (name == "max") return Aggregation::max;
  MASKCL_CHECK(name == "mean", "aggregation: found '", name, "', wanted min, max or mean");
  return Aggregation::mean;
}

inline Levels parse_levels(const std::string& name, bool inclusive) {
  if (name == "binary") return inclusive ? Levels::binary_inclusive : Levels::binary;
  if (name == "ternary") return Levels::ternary;
  if (name == "ternary_symmetric") return Levels::ternary_symmetric;
  if (name == "topk") return Levels::topk;
  MASKCL_CHECK(name == "soft", "levels: found '", name,
               "', wanted binary, ternary, ternary_symmetric, topk or soft");
  return Levels::soft;
}

// Runs body<L>() for runtime levels.
template <typename F>
MASKCL_HD void dispatch_levels(Levels levels, F&& body) {
  switch (levels) {
    case Levels::binary: return body.template operator()<Levels::binary>();
    case Levels::binary_inclusive: return body.template operator()<Levels::binary_inclusive>();
    case Levels::ternary: return body.template operator()<Levels::ternary>();
    case Levels::ternary_symmetric: return body.template operator()<Levels::ternary_symmetric>();
    case Levels::topk: return body.template operator()<Levels::topk>();
    case Levels::soft: return body.template operator()<Levels::soft>();
  }
}

// A threshold as torch compares a tensor with a number: rounded to the tensor's dtype, here the scores' own.
inline double threshold_for(ScalarType scores, Levels levels, double threshold) {
  if (levels == Levels::soft) return threshold;  // not compared
  double rounded = threshold;
  dispatch_float(scores, "threshold", [&]<typename S>() {
    rounded = static_cast<double>(static_cast<S>(static_cast<compute_t<S>>(threshold)));
  });
  return rounded;
}

// Scores are of the weight's dtype or float32; others are widened, which changes no comparison.
inline Tensor scores_for(const char* op, const Tensor& scores, ScalarType weight) {
  const ScalarType dtype = scores.scalar_type(), wide = compute_dtype(weight);
  if (dtype == weight || dtype == ScalarType::Float) return scores;
  MASKCL_CHECK(dtype != ScalarType::Double || wide == ScalarType::Double, op, ": scores is ",
               torch::headeronly::toString(dtype), ", wanted Float or the weight's dtype, ",
               torch::headeronly::toString(weight));
  return torch::stable::to(scores, wide);
}

// Runs body<T, S>() for a weight's dtype and that of its scores_for.
template <typename F>
void dispatch_pair(const char* op, ScalarType weight, ScalarType scores, F&& body) {
  dispatch_float(weight, op, [&]<typename T>() {
    if (scores == ScalarType::Float) return body.template operator()<T, float>();
    MASKCL_CHECK(scores == weight, op, ": scores are ", torch::headeronly::toString(scores),
                 ", wanted float32 or the weight's dtype");
    if constexpr (!std::is_same_v<T, float>) body.template operator()<T, T>();
  });
}

// A dense tensor seen around its channel: memory order [outer][channels][inner].
struct Layout {
  int64_t outer, channels, inner;
};

inline bool is_channels_last(const Tensor& x) {
  const int64_t dims = x.dim();
  if (dims != 4 && dims != 5) return false;
  int64_t expected = x.size(1);
  if (x.size(1) != 1 && x.stride(1) != 1) return false;
  for (int64_t d = dims - 1; d >= 2; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return x.size(0) == 1 || x.stride(0) == expected;
}

// The layout of x around `channel`, or nothing where its memory is not in such an order.
inline std::optional<Layout> layout_of(const Tensor& x, int64_t channel) {
  Layout layout{1, x.size(channel), 1};
  if (x.is_contiguous()) {
    for (int64_t d = 0; d < channel; ++d) layout.outer *= x.size(d);
    for (int64_t d = channel + 1; d < x.dim(); ++d) layout.inner *= x.size(d);
    return layout;
  }
  if (channel != 1 || !is_channels_last(x)) return std::nullopt;
  layout.outer = x.numel() / (layout.channels ? layout.channels : 1);
  return layout;
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d) || (a.size(d) != 1 && a.stride(d) != b.stride(d))) return false;
  return true;
}

// Whether the elements lie side by side, in whatever order of the dimensions.
inline bool is_dense(const Tensor& x) {
  if (x.is_contiguous() || x.numel() == 0) return true;
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (x.size(d) != 1) dims.push_back(d);
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return x.stride(a) < x.stride(b); });
  int64_t expected = 1;
  for (const int64_t d : dims) {
    if (x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// `t` in a memory order that outputs may have, contiguous or channels_last.
inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t);
}

// Fresh memory in the order of `like`, of its dtype or of another.
inline Tensor fresh_like(const Tensor& like, std::optional<ScalarType> dtype = std::nullopt) {
  using torch::stable::detail::from;
  int64_t stride = 1;
  bool ordinary = true;  // to the strides of dimensions of one, which say nothing and are kept
  for (int64_t d = like.dim(); d-- > 0; stride *= std::max<int64_t>(like.size(d), 1)) ordinary &= like.stride(d) == stride;
  if (ordinary) return fresh(like, like.sizes(), dtype);
  std::array<StableIValue, 6> stack{from(like),         from(dtype),        from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// `result` in the order that empty_like gives `like`, which the reference returns.
inline Tensor like_input(const Tensor& result, const Tensor& like) {
  Tensor out = fresh_like(like);
  if (same_strides(result, out)) return result;
  torch::stable::copy_(out, result);
  return out;
}

// `a` with the memory order of the dense tensor `like`; itself where it has it already.
inline Tensor in_order_of(const Tensor& a, const Tensor& like) {
  if (same_strides(a, like)) return a;
  Tensor out = fresh_like(like, a.scalar_type());
  torch::stable::copy_(out, a);
  return out;
}

// In its own memory order where it has the dtype already.
inline Tensor in_dtype(const Tensor& a, ScalarType dtype) {
  return a.scalar_type() == dtype ? a : torch::stable::to(a, dtype);
}

// Itself where it is contiguous: the dispatcher, which would find that out, costs as much as a small kernel.
inline Tensor as_contiguous(const Tensor& a) { return a.is_contiguous() ? a : torch::stable::contiguous(a); }

inline Tensor to_dtype(const Tensor& a, ScalarType dtype) { return as_contiguous(in_dtype(a, dtype)); }

inline Tensor empty_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  return fresh(like, {size}, dtype);
}

}  // namespace maskcl
