// Protection of a whole model's gradients on a GPU: one launch for the list.
//
// A warp takes a segment of a row. A row whose unit has no task ends there; for the others the in side decides element
// by element, and only what is protected is touched: rules hat and restore write, and read nothing of the gradient.
#include "table.cuh"

namespace maskcl::gpu {
namespace {

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

// Calls body<V>(row, position) for every V elements of the warp's segment that start at `position` of `row`.
template <int V, typename F>
__device__ __forceinline__ void for_segment(const Entry& e, int64_t row, int64_t segment, F&& body) {
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

// B: an unsigned type of the element's size. Without `Restore` protected elements become 0, whatever was there.
template <typename B, bool Restore, int N>
__global__ void __launch_bounds__(kThreads) select_kernel(const __grid_constant__ Table<Entry, N> table, bool exact) {
  const Entry& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  const int64_t* out = static_cast<const int64_t*>(e.out) + place.row * e.out_step;
  if (!any_task(out, e.words)) return;
  const int64_t* in = static_cast<const int64_t*>(e.in);
  B* data = static_cast<B*>(e.data) + place.row * e.width();
  const B* saved = Restore ? static_cast<const B*>(e.saved) + place.row * e.width() : nullptr;
  auto body = [&]<int V>(int64_t position) {
    int64_t column[V];
    columns_of<V>(e, position, column);
    unsigned hits = 0;
#pragma unroll
    for (int k = 0; k < V; ++k)
      hits |= static_cast<unsigned>(meets(out, in + (place.first_column + column[k]) * e.in_step, e.words, exact)) << k;
    if (hits == 0) return;
    if (hits == (1u << V) - 1) {
      if constexpr (Restore)
        store(data + position, load<V>(saved + position));
      else
        store(data + position, Vector<B, V>{});
      return;
    }
#pragma unroll
    for (int k = 0; k < V; ++k)
      if (hits >> k & 1) data[position + k] = Restore ? saved[position + k] : B(0);
  };
  if (e.vectorizes)
    for_segment<vector_width<B>>(e, place.row, place.segment, body);
  else
    for_segment<1>(e, place.row, place.segment, body);
}

// Rules const, adahat and random: protected elements times their factor.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
scale_kernel(const __grid_constant__ Table<Entry, N> table, bool exact, Rule rule, uint64_t seed) {
  using C = compute_t<T>;
  const Entry& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  const int64_t* out = static_cast<const int64_t*>(e.out) + place.row * e.out_step;
  if (!any_task(out, e.words)) return;
  const int64_t* in = static_cast<const int64_t*>(e.in);
  T* data = static_cast<T*>(e.data) + place.row * e.width();
  const C value = static_cast<C>(e.value);
  auto body = [&]<int V>(int64_t position) {
    int64_t column[V];
    columns_of<V>(e, position, column);
    int n[V], most = 0;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      n[k] = users(out, in + (place.first_column + column[k]) * e.in_step, e.words, exact);
      most = n[k] > most ? n[k] : most;
    }
    if (most == 0) return;
    Vector<T, V> grad = load<V>(data + position);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (n[k] == 0) continue;
      const int64_t at = position + k;  // random numbers go by the index in logical order, [rows, columns, inner]
      const int64_t logical = e.channels_last ? column[k] * e.inner + at / e.columns : at;
      const float random = rule == Rule::random ? uniform(seed, e.index, place.row * e.width() + logical) : 0.0f;
      grad.at[k] = static_cast<T>(static_cast<C>(grad.at[k]) * clamp_factor(rule, n[k], value, random));
    }
    store(data + position, grad);
  };
  if (e.vectorizes)
    for_segment<vector_width<T>>(e, place.row, place.segment, body);
  else
    for_segment<1>(e, place.row, place.segment, body);
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
soft_kernel(const __grid_constant__ Table<Entry, N> table, Aggregation how) {
  using C = compute_t<T>;
  const Entry& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  const C* in = static_cast<const C*>(e.in);
  const C a = e.out ? static_cast<const C*>(e.out)[place.row * e.out_step] : C(0);
  T* data = static_cast<T*>(e.data) + place.row * e.width();
  auto body = [&]<int V>(int64_t position) {
    int64_t column[V];
    columns_of<V>(e, position, column);
    Vector<T, V> grad = load<V>(data + position);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const C b = in ? in[(place.first_column + column[k]) * e.in_step] : a;
      const C both = e.out && in ? aggregate(how, a, b) : b;
      grad.at[k] = static_cast<T>(static_cast<C>(grad.at[k]) * (C(1) - both));
    }
    store(data + position, grad);
  };
  if (e.vectorizes)
    for_segment<vector_width<T>>(e, place.row, place.segment, body);
  else
    for_segment<1>(e, place.row, place.segment, body);
}

// --- host -----------------------------------------------------------------------------------------------------------

// The entries of one list, with everything that must live until their launch.
class List {
 public:
  List(const char* op, const std::vector<Tensor>& tensors, const std::vector<int64_t>& groups)
      : op_(op), tensors_(tensors), groups_(groups) {
    MASKCL_CHECK(groups.size() == tensors.size(), op, ": groups has ", groups.size(), " entries, wanted ",
                 tensors.size());
  }

  void check_length(const char* name, size_t length) const {
    MASKCL_CHECK(length == tensors_.size(), op_, ": ", name, " has ", length, " entries, wanted ", tensors_.size());
  }

  // The tensor itself, or a contiguous copy that finish() writes back.
  Entry entry(size_t t) {
    const Tensor& original = tensors_[t];
    check_cuda(op_, "a tensor of the list", original, tensors_[0]);
    MASKCL_CHECK(original.dim() >= 1, op_, ": tensor ", t, " is 0-d, wanted [O, I, *] or [O]");
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
    MASKCL_CHECK(e.groups >= 1 && e.rows % e.groups == 0, op_, ": groups[", t, "] is ", e.groups,
                 ", wanted a divisor of ", e.rows, " rows");
    MASKCL_CHECK(e.width() < (int64_t{1} << 31), op_, ": tensor ", t, " has rows of ", e.width(),
                 " elements, wanted fewer than 2^31");
    e.vectorizes = aligned16(e.data) && e.width() % (16 / static_cast<int64_t>(dense.element_size())) == 0;
    kept_.push_back(dense);
    return e;
  }

  void restore_from(Entry& e, const Tensor& saved) {
    const Tensor& dense = kept_.back();
    check_cuda(op_, "saved", saved, dense);
    MASKCL_CHECK(saved.numel() == dense.numel() && saved.dim() == dense.dim() &&
                     saved.scalar_type() == dense.scalar_type(),
                 op_, ": saved[", e.index, "] has ", saved.numel(), " elements of ",
                 torch::headeronly::toString(saved.scalar_type()), ", wanted ", dense.numel(), " of ",
                 torch::headeronly::toString(dense.scalar_type()));
    const Tensor copy = in_order_of(saved, dense);
    e.saved = copy.const_data_ptr();
    e.vectorizes = e.vectorizes && aligned16(e.saved);
    kept_.push_back(copy);
  }

  void tasks(Entry& e, const Tensor& out, const Tensor& in) {
    e.out = side(e, "out_tasks", out, ScalarType::Long, e.rows, &e.out_step);
    e.in = side(e, "in_tasks", in, ScalarType::Long, e.columns * e.groups, &e.in_step);
    MASKCL_CHECK(out.dim() == 2 && in.dim() == 2 && out.size(1) == in.size(1), op_, ": out_tasks[", e.index,
                 "] and in_tasks[", e.index, "] differ in words, wanted int64 [units, words]");
    e.words = static_cast<int32_t>(out.size(1));
    e.out_step *= e.words;
    e.in_step *= e.words;
  }

  void masks(Entry& e, const Tensor& out, const Tensor& in, ScalarType dtype) {
    e.out = out.numel() ? side(e, "out_masks", out, dtype, e.rows, &e.out_step) : nullptr;
    e.in = in.numel() ? side(e, "in_masks", in, dtype, e.columns * e.groups, &e.in_step) : nullptr;
  }

  void finish() {
    for (auto& [original, dense] : copied_) torch::stable::copy_(original, dense);
  }

 private:
  const void* side(const Entry& e, const char* name, const Tensor& given, ScalarType dtype, int64_t units,
                   int32_t* step) {
    check_cuda(op_, name, given, tensors_[0]);
    MASKCL_CHECK(dtype != ScalarType::Long || given.scalar_type() == dtype, op_, ": ", name, "[", e.index, "] is ",
                 torch::headeronly::toString(given.scalar_type()), ", wanted int64");
    MASKCL_CHECK(given.dim() >= 1 && (given.size(0) == units || given.size(0) == 1), op_, ": ", name, "[", e.index,
                 "] has ", given.dim() ? given.size(0) : 0, " units, wanted ", units);
    *step = given.size(0) == 1 ? 0 : 1;
    kept_.push_back(to_dtype(given, dtype));
    return kept_.back().const_data_ptr();
  }

  const char* op_;
  const std::vector<Tensor>& tensors_;
  const std::vector<int64_t>& groups_;
  std::vector<Tensor> kept_;
  std::vector<std::pair<Tensor, Tensor>> copied_;
};

}  // namespace

void clamp_grads_(const std::vector<Tensor>& grads, const std::vector<Tensor>& out_tasks,
                  const std::vector<Tensor>& in_tasks, const std::vector<int64_t>& groups, bool exact,
                  const std::string& rule_name, const std::vector<double>& values, int64_t seed) {
  const char* op = "clamp_grads_";
  const Rule rule = parse_rule(rule_name);
  List list(op, grads, groups);
  list.check_length("out_tasks", out_tasks.size());
  list.check_length("in_tasks", in_tasks.size());
  if (rule != Rule::hat) list.check_length("values", values.size());
  if (grads.empty()) return;
  const DeviceGuard guard(grads[0].get_device_index());
  const cudaStream_t stream = current_stream(grads[0]);
  auto fill = [&](std::vector<Entry>& entries, size_t t) {
    if (grads[t].numel() == 0) return;
    Entry e = list.entry(t);
    list.tasks(e, out_tasks[t], in_tasks[t]);
    e.value = rule == Rule::hat ? 0 : values[t];
    entries.push_back(e);
  };
  for_dtypes<Entry>(op, grads, fill, [&]<typename T>(const std::vector<Entry>& entries) {
    launch_entries(op, entries, [&]<int N>(const Table<Entry, N>& table, unsigned blocks) {
      if (rule == Rule::hat)
        select_kernel<typename BitsOf<sizeof(T)>::type, false, N><<<blocks, kThreads, 0, stream>>>(table, exact);
      else
        scale_kernel<T, N><<<blocks, kThreads, 0, stream>>>(table, exact, rule, static_cast<uint64_t>(seed));
    });
  });
  list.finish();
}

void restore_protected_(const std::vector<Tensor>& params, const std::vector<Tensor>& saved,
                        const std::vector<Tensor>& out_tasks, const std::vector<Tensor>& in_tasks,
                        const std::vector<int64_t>& groups, bool exact) {
  const char* op = "restore_protected_";
  List list(op, params, groups);
  list.check_length("saved", saved.size());
  list.check_length("out_tasks", out_tasks.size());
  list.check_length("in_tasks", in_tasks.size());
  if (params.empty()) return;
  const DeviceGuard guard(params[0].get_device_index());
  const cudaStream_t stream = current_stream(params[0]);
  auto fill = [&](std::vector<Entry>& entries, size_t t) {
    if (params[t].numel() == 0) return;
    Entry e = list.entry(t);
    list.restore_from(e, saved[t]);
    list.tasks(e, out_tasks[t], in_tasks[t]);
    entries.push_back(e);
  };
  for_dtypes<Entry>(op, params, fill, [&]<typename T>(const std::vector<Entry>& entries) {
    launch_entries(op, entries, [&]<int N>(const Table<Entry, N>& table, unsigned blocks) {
      select_kernel<typename BitsOf<sizeof(T)>::type, true, N><<<blocks, kThreads, 0, stream>>>(table, exact);
    });
  });
  list.finish();
}

void clamp_grads_soft_(const std::vector<Tensor>& grads, const std::vector<Tensor>& out_masks,
                       const std::vector<Tensor>& in_masks, const std::vector<int64_t>& groups,
                       const std::string& aggregation) {
  const char* op = "clamp_grads_soft_";
  const Aggregation how = parse_aggregation(aggregation);
  List list(op, grads, groups);
  list.check_length("out_masks", out_masks.size());
  list.check_length("in_masks", in_masks.size());
  if (grads.empty()) return;
  const DeviceGuard guard(grads[0].get_device_index());
  const cudaStream_t stream = current_stream(grads[0]);
  auto fill = [&](std::vector<Entry>& entries, size_t t) {
    if (grads[t].numel() == 0 || (out_masks[t].numel() == 0 && in_masks[t].numel() == 0)) return;
    Entry e = list.entry(t);
    list.masks(e, out_masks[t], in_masks[t], compute_dtype(grads[t].scalar_type()));
    entries.push_back(e);
  };
  for_dtypes<Entry>(op, grads, fill, [&]<typename T>(const std::vector<Entry>& entries) {
    launch_entries(op, entries, [&]<int N>(const Table<Entry, N>& table, unsigned blocks) {
      soft_kernel<T, N><<<blocks, kThreads, 0, stream>>>(table, how);
    });
  });
  list.finish();
}

}  // namespace maskcl::gpu

STABLE_TORCH_LIBRARY_IMPL(maskcl, CUDA, m) {
  m.impl("clamp_grads_", TORCH_BOX(&maskcl::gpu::clamp_grads_));
  m.impl("restore_protected_", TORCH_BOX(&maskcl::gpu::restore_protected_));
  m.impl("clamp_grads_soft_", TORCH_BOX(&maskcl::gpu::clamp_grads_soft_));
}
