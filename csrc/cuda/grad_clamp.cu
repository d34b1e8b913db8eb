// Protection of a whole model's gradients on a GPU: one launch for the list.
//
// A warp takes a segment of a row. A row whose unit has no task ends there; for the others the in side decides element
// by element, and only what is protected is touched: rules hat and restore write, and read nothing of the gradient.
#include "unit_rows.cuh"

namespace maskcl::gpu {
namespace {

// U: an unsigned type of the element's size. Without `Restore` protected elements become 0, whatever was there.
template <typename U, bool Restore, int N>
__global__ void __launch_bounds__(kThreads) select_kernel(const __grid_constant__ Table<Entry, N> table, bool exact) {
  const Entry& e = entry_of_block(table);
  const Place place(e);
  if (place.row >= e.rows) return;
  const int64_t* out = static_cast<const int64_t*>(e.out) + place.row * e.out_step;
  if (!any_task(out, e.words)) return;
  const int64_t* in = static_cast<const int64_t*>(e.in);
  U* data = static_cast<U*>(e.data) + place.row * e.width();
  const U* saved = Restore ? static_cast<const U*>(e.saved) + place.row * e.width() : nullptr;
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
        store(data + position, Vector<U, V>{});
      return;
    }
#pragma unroll
    for (int k = 0; k < V; ++k)
      if (hits >> k & 1) data[position + k] = Restore ? saved[position + k] : U(0);
  };
  if (e.vectorizes)
    for_segment<vector_width<U>>(e, place.segment, body);
  else
    for_segment<1>(e, place.segment, body);
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
    for_segment<vector_width<T>>(e, place.segment, body);
  else
    for_segment<1>(e, place.segment, body);
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
    for_segment<vector_width<T>>(e, place.segment, body);
  else
    for_segment<1>(e, place.segment, body);
}

}  // namespace

// --- ops ------------------------------------------------------------------------------------------------------------

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
