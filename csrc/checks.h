// Argument checks that the kernels of every device share: the ops may be called as torch.ops.maskcl.<name>, past the
// public functions. Each error names the op, the argument, what was found and what was wanted.
#pragma once

#include "common.h"

namespace maskcl {

inline std::string sizes_as_text(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d);
  return sizes;
}

inline bool has_sizes(const Tensor& t, const std::vector<int64_t>& wanted) {
  bool same = t.dim() == static_cast<int64_t>(wanted.size());
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == wanted[d];
  return same;
}

inline void check_sizes(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& wanted) {
  MASKCL_CHECK(has_sizes(t, wanted), op, ": ", name, " has shape ", sizes_as_text(sizes_of(t)), ", wanted ",
               sizes_as_text(wanted));
}

inline void check_shape(const char* op, const char* name, const Tensor& t, const Tensor& like, const char* of) {
  MASKCL_CHECK(has_sizes(t, sizes_of(like)), op, ": ", name, " has shape ", sizes_as_text(sizes_of(t)), ", wanted ", of,
               "'s, ", sizes_as_text(sizes_of(like)));
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType wanted) {
  MASKCL_CHECK(t.scalar_type() == wanted, op, ": ", name, " is ", torch::headeronly::toString(t.scalar_type()),
               ", wanted ", torch::headeronly::toString(wanted));
}

inline void check_dimensions(const char* op, const char* name, const Tensor& t, int64_t wanted) {
  MASKCL_CHECK(t.dim() == wanted, op, ": ", name, " has shape ", sizes_as_text(sizes_of(t)), ", wanted ", wanted,
               " dimensions");
}

inline void check_one(const char* op, const char* name, const Tensor& t) {
  MASKCL_CHECK(t.numel() == 1, op, ": ", name, " has ", t.numel(), " elements, wanted 1");
}

inline void check_units(const char* op, const char* name, const Tensor& t, int64_t units) {
  MASKCL_CHECK(t.numel() == units, op, ": ", name, " has ", t.numel(), " units, wanted ", units);
}

// A mask's gradient in parts, one after the other; a part without elements is one of zeros.
inline void check_parts(const char* op, const std::vector<Tensor>& grads, const std::vector<int64_t>& sizes,
                        int64_t units) {
  MASKCL_CHECK(grads.size() == sizes.size(), op, ": found ", grads.size(), " grads, wanted ", sizes.size());
  int64_t all = 0;
  for (size_t p = 0; p < sizes.size(); ++p) {
    if (grads[p].numel()) check_units(op, "grads", grads[p], sizes[p]);
    all += sizes[p];
  }
  MASKCL_CHECK(all == units, op, ": sizes are ", all, " units, wanted ", units);
}

inline void check_channels(const char* op, const char* name, const Tensor& vector, int64_t channels) {
  MASKCL_CHECK(vector.numel() == channels, op, ": ", name, " has ", vector.numel(), " elements, wanted ", channels,
               " channels");
}

// The bound of "topk", on the host.
inline double kth_value(const char* op, const std::optional<Tensor>& kth) {
  MASKCL_CHECK(kth.has_value(), op, ": levels 'topk' needs kth");
  check_one(op, "kth", *kth);
  return *const_data<double>(to_dtype(*kth, ScalarType::Double));
}

inline int64_t checked_channel(const char* op, const Tensor& x, int64_t channel_dim) {
  const int64_t channel = channel_dim < 0 ? channel_dim + x.dim() : channel_dim;
  MASKCL_CHECK(channel >= 0 && channel < x.dim(), op, ": channel_dim is ", channel_dim, ", x has ", x.dim(),
               " dimensions");
  return channel;
}

inline void check_from_output(const char* op, Activation activation, bool from_output) {
  MASKCL_CHECK(!from_output || has_slope_from_output(activation), op,
               ": from_output is true, but the activation has no derivative in terms of its output");
}

// Of x W^T + bias: x [N, I], weight [O, I], bias [O].
inline void check_product(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_dimensions(op, "x", x, 2);
  check_sizes(op, "weight", weight, {weight.dim() ? weight.size(0) : 0, x.size(1)});
  check_dtype(op, "weight", weight, x.scalar_type());
  if (!bias) return;
  check_sizes(op, "bias", *bias, {weight.size(0)});
  check_dtype(op, "bias", *bias, x.scalar_type());
}

// Of its output's gradient.
inline void check_product_grad(const char* op, const Tensor& grad, const Tensor& x, const Tensor& weight) {
  check_product(op, x, weight, std::nullopt);
  check_sizes(op, "grad", grad, {x.size(0), weight.size(0)});
}

// Bits of what is wanted of a layer of such a run.
enum Wanted : int64_t { kWeight = 1, kBias = 2, kMask = 4 };

// A run of linear layers, each behind the one before: biases [O] or without elements, masks [O].
inline void check_layers(const char* op, const Tensor& x, const std::vector<Tensor>& weights,
                         const std::vector<Tensor>& biases, const std::vector<Tensor>& masks) {
  check_dimensions(op, "x", x, 2);
  const bool counted = biases.size() == weights.size() && (masks.size() == weights.size() || masks.size() + 1 == weights.size());
  MASKCL_CHECK(!weights.empty() && counted, op, ": found ", weights.size(), " weights, ", biases.size(), " biases and ",
               masks.size(), " masks, wanted as many of each, at least 1, or a mask less");
  int64_t columns = x.size(1);
  for (size_t l = 0; l < weights.size(); ++l) {
    const int64_t units = weights[l].dim() ? weights[l].size(0) : 0;
    check_sizes(op, "weight", weights[l], {units, columns});
    check_dtype(op, "weight", weights[l], x.scalar_type());
    if (l < masks.size()) check_sizes(op, "mask", masks[l], {units});
    if (biases[l].numel()) {
      check_sizes(op, "bias", biases[l], {units});
      check_dtype(op, "bias", biases[l], x.scalar_type());
    }
    columns = units;
  }
}

inline void check_layers_grad(const char* op, const Tensor& grad, const Tensor& x, const std::vector<Tensor>& ys,
                              const std::vector<Tensor>& weights, const std::vector<Tensor>& masks,
                              const std::vector<int64_t>& wanted) {
  const Tensor none = fresh(x, {0});
  check_layers(op, x, weights, std::vector<Tensor>(weights.size(), none), masks);
  MASKCL_CHECK(ys.size() == weights.size() && wanted.size() == weights.size(), op, ": found ", ys.size(), " ys and ",
               wanted.size(), " wanted, wanted ", weights.size());
  for (size_t l = 0; l < ys.size(); ++l) {
    check_sizes(op, "y", ys[l], {x.size(0), weights[l].size(0)});
    check_dtype(op, "y", ys[l], x.scalar_type());
  }
  check_sizes(op, "grad", grad, {x.size(0), weights.back().size(0)});
}

// A layer's unit counts, one a part of the mask, for all layers or for all but the last.
inline void check_sizes_of_layers(const char* op, const std::vector<int64_t>& sizes, const Tensor& mask) {
  int64_t units = 0;
  for (const int64_t size : sizes) units += size;
  MASKCL_CHECK(units == mask.numel(), op, ": sizes are ", units, " units, wanted ", mask.numel());
}

// Words [W] or, ternary, [2, W] of so many weights.
inline void check_words(const char* op, const Tensor& words, int64_t weights) {
  const int64_t wanted = ceil_div(weights, 32), dims = words.dim();
  check_dtype(op, "words", words, ScalarType::Int);
  MASKCL_CHECK((dims == 1 || (dims == 2 && words.size(0) == 2)) && words.size(dims - 1) == wanted, op,
               ": words has shape ", sizes_as_text(sizes_of(words)), ", wanted [", wanted, "] or [2, ", wanted, "]");
}

inline void check_combinable(const char* op, const Tensor& a, const Tensor& b) {
  check_dtype(op, "a", a, ScalarType::Int);
  check_dtype(op, "b", b, ScalarType::Int);
  check_shape(op, "b", b, a, "a");
}

inline void check_embedding(const char* op, const Tensor& index, const Tensor& weight, const Tensor& words) {
  check_dtype(op, "index", index, ScalarType::Long);
  check_dimensions(op, "weight", weight, 2);
  check_words(op, words, weight.numel());
}

inline void check_unpacked(const char* op, const Tensor& words, const std::vector<int64_t>& shape, ScalarType dtype) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  check_words(op, words, count);
  const bool is_signed = dtype != ScalarType::Bool && dtype != ScalarType::Byte && dtype != ScalarType::UInt16 &&
                         dtype != ScalarType::UInt32 && dtype != ScalarType::UInt64;
  MASKCL_CHECK(words.dim() == 1 || is_signed, op, ": dtype is ", torch::headeronly::toString(dtype),
               ", wanted a signed one for ternary words");
}

// Of y = x W^T for each sample, or over positions: x [N, I], g [N, O] or x [N, P, I], g [N, P, O], importance [O, I].
inline void check_importance(const char* op, const Tensor& importance, const Tensor& x, const Tensor& g) {
  const int64_t dims = x.dim();
  MASKCL_CHECK(dims == 2 || dims == 3, op, ": x has shape ", sizes_as_text(sizes_of(x)),
               ", wanted [N, I] or [N, P, I]");
  std::vector<int64_t> wanted = sizes_of(x);
  wanted.back() = g.dim() ? g.size(g.dim() - 1) : 0;
  check_sizes(op, "grad_out", g, wanted);
  check_sizes(op, "importance", importance, {wanted.back(), x.size(dims - 1)});
  check_dtype(op, "grad_out", g, x.scalar_type());
  check_dtype(op, "importance", importance, compute_dtype(x.scalar_type()));
}

// --- lists ----------------------------------------------------------------------------------------------------------

inline std::string entry_name(const char* name, size_t t) { return std::string(name) + "[" + std::to_string(t) + "]"; }

inline void check_length(const char* op, const char* name, size_t found, size_t wanted) {
  MASKCL_CHECK(found == wanted, op, ": ", name, " has ", found, " entries, wanted ", wanted);
}

// A weight [O, I, *] or a vector [O], and how many groups its rows are in.
inline void check_rows(const char* op, size_t t, const Tensor& x, int64_t groups) {
  MASKCL_CHECK(x.dim() >= 1, op, ": tensor ", t, " is 0-d, wanted [O, I, *] or [O]");
  MASKCL_CHECK(groups >= 1 && x.size(0) % groups == 0, op, ": groups[", t, "] is ", groups, ", wanted a divisor of ",
               x.size(0), " rows");
}

// One side of a weight: an entry for each unit, or one that stands for all.
inline void check_side(const char* op, const char* name, size_t t, const Tensor& side, int64_t units) {
  MASKCL_CHECK(side.dim() >= 1 && (side.size(0) == units || side.size(0) == 1), op, ": ", name, "[", t, "] has ",
               side.dim() ? side.size(0) : 0, " units, wanted ", units);
}

inline int64_t columns_in(const Tensor& x) { return x.dim() > 1 ? x.size(1) : 1; }

// Both sides' task words: int64 [units, W], the same W.
inline void check_tasks(const char* op, size_t t, const Tensor& x, int64_t groups, const Tensor& out, const Tensor& in) {
  check_dtype(op, entry_name("out_tasks", t).c_str(), out, ScalarType::Long);
  check_dtype(op, entry_name("in_tasks", t).c_str(), in, ScalarType::Long);
  MASKCL_CHECK(out.dim() == 2 && in.dim() == 2 && out.size(1) == in.size(1), op, ": out_tasks[", t, "] has shape ",
               sizes_as_text(sizes_of(out)), " and in_tasks[", t, "] ", sizes_as_text(sizes_of(in)),
               ", wanted [units, words] with as many words");
  check_side(op, "out_tasks", t, out, x.size(0));
  check_side(op, "in_tasks", t, in, columns_in(x) * groups);
}

// Both sides' soft masks [units]; one without elements is not there.
inline void check_masks(const char* op, size_t t, const Tensor& x, int64_t groups, const Tensor& out, const Tensor& in) {
  for (const auto& [name, side, units] :
       {std::tuple{"out_masks", &out, x.size(0)}, std::tuple{"in_masks", &in, columns_in(x) * groups}}) {
    check_dimensions(op, entry_name(name, t).c_str(), *side, 1);
    if (side->numel()) check_side(op, name, t, *side, units);
  }
}

inline void check_saved(const char* op, size_t t, const Tensor& saved, const Tensor& x) {
  check_shape(op, entry_name("saved", t).c_str(), saved, x, "the parameter");
  check_dtype(op, entry_name("saved", t).c_str(), saved, x.scalar_type());
}

// An importance and a gradient of its shape, or samples of that.
inline void check_accumulated(const char* op, size_t t, const Tensor& omega, const Tensor& grad) {
  check_dtype(op, entry_name("importances", t).c_str(), omega, compute_dtype(grad.scalar_type()));
  std::vector<int64_t> wanted = sizes_of(omega);
  if (grad.dim() > omega.dim()) wanted.insert(wanted.begin(), grad.size(0));
  check_sizes(op, entry_name("grads", t).c_str(), grad, wanted);
}

inline void check_like_param(const char* op, const char* name, size_t t, const Tensor& tensor, const Tensor& param) {
  check_shape(op, entry_name(name, t).c_str(), tensor, param, "the parameter");
  check_dtype(op, entry_name(name, t).c_str(), tensor, param.scalar_type());
}

inline void check_anchored(const char* op, size_t t, const Tensor& param, const Tensor& anchor, const Tensor& omega,
                           ScalarType sums) {
  check_like_param(op, "anchors", t, anchor, param);
  check_shape(op, entry_name("importances", t).c_str(), omega, param, "the parameter");
  check_dtype(op, entry_name("importances", t).c_str(), omega, compute_dtype(param.scalar_type()));
  check_dtype(op, entry_name("importances", t).c_str(), omega, sums);
}

}  // namespace maskcl
