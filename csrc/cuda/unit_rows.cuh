// The weights of a list as the rows of their out units, with what is known of the units of both sides: what a kernel is
// given of each, where a warp works in it, and the host's list of them.
#pragma once

#include "table.cuh"

namespace maskcl::gpu {

constexpr int64_t kSegment = 1024;  // elements of a row that one warp takes
constexpr int kWarps = kThreads / kWarp;

// One tensor: [rows][columns][inner] in memory, or [rows][inner][columns] where channels_last.
struct Entry {
  void* data;
  const void* saved;  // what restore puts back
  const void* out;    // task words [rows, words], or a soft mask [rows]; null: no such side
  const void* in;     // the same for groups * columns units
  double value;
  int64_t rows, columns, inner;
  int64_t first_block;
  int32_t out_step, in_step;  // from one unit to the next; 0: one row stands for all
  int32_t words, groups, index;
  bool channels_last, vectorizes;

  __host__ __device__ __forceinline__ int64_t width() const { return columns * inner; }
  int64_t blocks() const { return ceil_div(rows * ceil_div(width(), kSegment), kWarps); }
};

// --- device ---------------------------------------------------------------------------------------------------------

// Calls body<V>(position) for every V elements of a segment of a row, from `position` of the row on.
template <int V, typename F>
__device__ __forceinline__ void for_segment(const Entry& e, int64_t segment, F&& body) {
  const int64_t begin = segment * kSegment;
  const int64_t end = begin + kSegment < e.width() ? begin + kSegment : e.width();
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x % kWarp) * V; at < end; at += kWarp * V)
    body.template operator()<V>(at);
}

// Index of the in unit of each of the V elements at `position` of a row, without the group's offset.
template <int V>
__device__ __forceinline__ void columns_of(const Entry& e, int64_t position, int64_t* column) {
  if (e.inner == 1) {
#pragma unroll
    for (int k = 0; k < V; ++k) column[k] = position + k;
    return;
  }
  // A row has fewer than 2^31 elements (checked on the host), so 32-bit division will do.
  const uint32_t by = static_cast<uint32_t>(e.channels_last ? e.columns : e.inner);
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const uint32_t at = static_cast<uint32_t>(position) + k;
    column[k] = e.channels_last ? at % by : at / by;
  }
}

// Where the warp works; `row` is at least e.rows for the warps that are left over.
struct Place {
  int64_t row, segment, first_column;

  __device__ __forceinline__ explicit Place(const Entry& e) {
    const int64_t segments = (e.width() + kSegment - 1) / kSegment;
    const int64_t unit = (static_cast<int64_t>(blockIdx.x) - e.first_block) * kWarps + threadIdx.x / kWarp;
    row = unit / segments;
    segment = unit - row * segments;
    first_column = e.groups == 1 ? 0 : row / (e.rows / e.groups) * e.columns;
  }
};

__device__ __forceinline__ bool any_task(const int64_t* unit, int words) {
  for (int w = 0; w < words; ++w)
    if (unit[w] != 0) return true;
  return false;
}

// Whether weight (out, in) is protected, for an out unit that has a task.
__device__ __forceinline__ bool meets(const int64_t* out, const int64_t* in, int words, bool exact) {
  for (int w = 0; w < words; ++w)
    if ((exact ? out[w] & in[w] : in[w]) != 0) return true;
  return false;
}

// --- host -----------------------------------------------------------------------------------------------------------

// The entries of one list, with everything that must live until their launch.
class List {
 public:
  List(const char* op, const std::vector<Tensor>& tensors, const std::vector<int64_t>& groups)
      : op_(op), tensors_(tensors), groups_(groups) {
    maskcl::check_length(op, "groups", groups.size(), tensors.size());
  }

  void check_length(const char* name, size_t length) const {
    maskcl::check_length(op_, name, length, tensors_.size());
  }

  size_t element_size(size_t t) const { return tensors_[t].element_size(); }

  // The tensor itself, or a contiguous copy that finish() writes back.
  Entry entry(size_t t) {
    const Tensor& original = tensors_[t];
    check_cuda(op_, "a tensor of the list", original, tensors_[0]);
    check_rows(op_, t, original, groups_[t]);
    const bool last = !original.is_contiguous() && is_channels_last(original);
    Tensor dense = original;
    if (!last && !original.is_contiguous()) {
      dense = torch::stable::contiguous(original);
      copied_.emplace_back(original, dense);
    }
    Entry e{};
    e.data = dense.mutable_data_ptr();
    e.rows = dense.size(0);
    e.columns = dense.dim() > 1 ? dense.size(1) : 1;
    e.inner = dense.numel() / std::max<int64_t>(e.rows * e.columns, 1);
    e.channels_last = last;
    e.index = static_cast<int32_t>(t);
    e.groups = static_cast<int32_t>(groups_[t]);
    MASKCL_CHECK(e.width() < (int64_t{1} << 31), op_, ": tensor ", t, " has rows of ", e.width(),
                 " elements, wanted fewer than 2^31");
    e.vectorizes = aligned16(e.data) && e.width() % (16 / static_cast<int64_t>(dense.element_size())) == 0;
    kept_.push_back(dense);
    dense_ = dense;
    return e;
  }

  // The memory of a tensor of the last entry's shape in its order; what is `written` goes back by finish().
  void* beside(Entry& e, const char* name, const Tensor& tensor, bool written) {
    check_cuda(op_, name, tensor, tensors_[0]);
    const Tensor used = in_order_of(tensor, dense_);
    if (written && used.get() != tensor.get()) copied_.emplace_back(tensor, used);
    kept_.push_back(used);
    void* memory = used.mutable_data_ptr();
    e.vectorizes = e.vectorizes && aligned16(memory);
    return memory;
  }

  void restore_from(Entry& e, const Tensor& saved) {
    const Tensor& dense = kept_.back();
    check_cuda(op_, "saved", saved, dense);
    check_saved(op_, e.index, saved, dense);
    const Tensor copy = in_order_of(saved, dense);
    e.saved = copy.const_data_ptr();
    e.vectorizes = e.vectorizes && aligned16(e.saved);
    kept_.push_back(copy);
  }

  // Empty lists are no sides: then nothing is protected.
  void check_sides(const std::vector<Tensor>& out_tasks, const std::vector<Tensor>& in_tasks) const {
    if (out_tasks.empty() && in_tasks.empty()) return;
    check_length("out_tasks", out_tasks.size());
    check_length("in_tasks", in_tasks.size());
  }

  void tasks(Entry& e, const std::vector<Tensor>& out_tasks, const std::vector<Tensor>& in_tasks) {
    if (!out_tasks.empty()) tasks(e, out_tasks[e.index], in_tasks[e.index]);
  }

  void tasks(Entry& e, const Tensor& out, const Tensor& in) {
    check_tasks(op_, e.index, tensors_[e.index], e.groups, out, in);
    e.out = side("out_tasks", out, ScalarType::Long, &e.out_step);
    e.in = side("in_tasks", in, ScalarType::Long, &e.in_step);
    e.words = static_cast<int32_t>(out.size(1));
    e.out_step *= e.words;
    e.in_step *= e.words;
  }

  void masks(Entry& e, const Tensor& out, const Tensor& in, ScalarType dtype) {
    check_masks(op_, e.index, tensors_[e.index], e.groups, out, in);
    e.out = out.numel() ? side("out_masks", out, dtype, &e.out_step) : nullptr;
    e.in = in.numel() ? side("in_masks", in, dtype, &e.in_step) : nullptr;
  }

  void finish() {
    for (auto& [original, dense] : copied_) torch::stable::copy_(original, dense);
  }

 private:
  const void* side(const char* name, const Tensor& given, ScalarType dtype, int32_t* step) {
    check_cuda(op_, name, given, tensors_[0]);
    *step = given.size(0) == 1 ? 0 : 1;
    kept_.push_back(to_dtype(given, dtype));
    return kept_.back().const_data_ptr();
  }

  const char* op_;
  const std::vector<Tensor>& tensors_;
  const std::vector<int64_t>& groups_;
  Tensor dense_;  // of the last entry
  std::vector<Tensor> kept_;
  std::vector<std::pair<Tensor, Tensor>> copied_;
};

}  // namespace maskcl::gpu
