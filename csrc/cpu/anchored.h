// Parameters with their anchors and importances, as what is asked of the whole list in one parallel region.
//
// The list is cut into chunks of one tensor each. Sums are taken by chunk, then over chunks in order, so that they do not
// depend on the number of threads.
#pragma once

#include "../handles.h"
#include "../lists.h"
#include "parallel.h"

namespace maskcl {

constexpr int64_t kChunk = 32768;  // elements of a unit of work

struct Chunk {
  int64_t tensor, begin, end;
};

inline void cut(int64_t tensor, int64_t count, std::vector<Chunk>& chunks) {
  for (int64_t at = 0; at < count; at += kChunk) chunks.push_back({tensor, at, std::min(at + kChunk, count)});
}

// One parameter with what belongs to it, in one order of memory.
struct Entry {
  void* grad;  // null where none is asked for
  const void *param, *anchor, *omega;
  int64_t count;
  ScalarType dtype;  // the parameter's
};

// A list of them. Copies of what lies in another order live as long as it does.
class Anchored {
 public:
  Anchored(const char* op, const Handles* grads, const Handles& params, const Handles& anchors, const Handles& omegas)
      : op_(op) {
    if (grads) check_lists(op, params, *grads);
    check_lists(op, params, anchors);
    check_lists(op, params, omegas);
    MASKCL_CHECK(!params.empty(), op, ": found no tensors, wanted at least one");
    entries_.reserve(params.size());
    const int32_t sums = View(omegas[0]).dtype;
    for (size_t t = 0; t < params.size(); ++t) {
      const View param(params[t]), anchor(anchors[t]), omega(omegas[t]);
      Entry& entry = entries_.emplace_back(
          Entry{nullptr, param.data, anchor.data, omega.data, param.numel, floating(op, param.dtype)});
      bool fits = param.contiguous && is_wide(sums, param.dtype) && is_alike(anchor, param, param.dtype) &&
                  is_alike(omega, param, sums);
      if (grads) {
        const View grad((*grads)[t]);
        fits &= is_alike(grad, param, param.dtype);
        entry.grad = grad.data;
      }
      if (!fits) reorder(entry, t, grads, params, anchors, omegas);
    }
  }

  // Calls body<T>(entry, begin, end) -> a chunk's part of the penalty, in parallel; returns their sum, 0-d as `like`.
  template <typename F>
  Tensor sum(const Tensor& like, const F& body) const {
    std::vector<Chunk> chunks;
    for (size_t t = 0; t < entries_.size(); ++t) cut(t, entries_[t].count, chunks);
    std::vector<double> parts(chunks.size());
    parallel(chunks.size(), kChunk, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const Entry& entry = entries_[chunks[c].tensor];
        dispatch_float(entry.dtype, op_, [&]<typename T>() {
          parts[c] = body.template operator()<T>(entry, chunks[c].begin, chunks[c].end - chunks[c].begin);
        });
      }
    });
    double total = 0;
    for (const double part : parts) total += part;
    const Tensor out = fresh(like, {});
    dispatch_float(like.scalar_type(), op_, [&]<typename T>() { *data<T>(out) = static_cast<T>(total); });
    return out;
  }
  void finish() { written_.finish(); }

 private:
  static bool is_alike(const View& view, const View& param, int32_t dtype) {
    return view.contiguous && view.dtype == dtype && view.has_shape_of(param);
  }
  static bool is_wide(int32_t sums, int32_t dtype) {
    static const int32_t f32 = aoti_torch_dtype_float32(), f64 = aoti_torch_dtype_float64();
    return sums == (dtype == f64 ? f64 : f32);
  }

  // Says what is wrong, or brings one that is right into one order of memory.
  void reorder(Entry& entry, size_t t, const Handles* grads, const Handles& params, const Handles& anchors,
               const Handles& omegas) {
    const Tensor p = params.tensor(t), a = anchors.tensor(t), o = omegas.tensor(t);
    check_anchored(op_, t, p, a, o, omegas.tensor(0).scalar_type());
    const Tensor param = held_.emplace_back(order_from(p));
    entry.param = param.const_data_ptr();
    entry.anchor = held_.emplace_back(in_order_of(a, param)).const_data_ptr();
    entry.omega = held_.emplace_back(in_order_of(o, param)).const_data_ptr();
    if (!grads) return;
    const Tensor g = grads->tensor(t);
    check_like_param(op_, "grads", t, g, p);
    entry.grad = held_.emplace_back(written_.in_order(g, param)).mutable_data_ptr();
  }

  const char* op_;
  std::vector<Entry> entries_;
  std::vector<Tensor> held_;
  Written written_;
};

template <typename T>
const T* at(const void* data, int64_t begin) {
  return static_cast<const T*>(data) + begin;
}

}  // namespace maskcl
