// Protection of a whole model's gradients: one parallel region for all tensors.
//
// A tensor is O rows of I * K elements. Rows whose unit has no task are skipped without being read. For the others the
// in side is laid out once, as 32-bit halves of the task words in the memory order of a row, so that rule hat is a load,
// a test and a store an element, whatever the tasks are.

#include <algorithm>
#include <numeric>

#include "parallel.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kChunk = 16384;  // elements of a unit of work

// --- loops ----------------------------------------------------------------------------------------------------------

// g = 0 where (in & out) != 0, by integer masks, so that NaN and infinity become 0 as well.
template <typename U>
MASKCL_INLINE void zero_row(U* g, const int32_t* in, int32_t out, int64_t count) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) g[i] = (in[i] & out) != 0 ? U(0) : g[i];
}

template <typename U>
MASKCL_INLINE void restore_row(U* p, const U* saved, const int32_t* in, int32_t out, int64_t count) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) p[i] = (in[i] & out) != 0 ? saved[i] : p[i];
}

template <typename T, typename C>
MASKCL_INLINE void soft_row(T* g, const C* in, C out, int64_t count, Aggregation how) {
  if (how == Aggregation::min) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      g[i] = static_cast<T>(static_cast<C>(g[i]) * (C(1) - aggregate(Aggregation::min, out, in[i])));
  } else if (how == Aggregation::max) {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      g[i] = static_cast<T>(static_cast<C>(g[i]) * (C(1) - aggregate(Aggregation::max, out, in[i])));
  } else {
    MASKCL_VECTORIZE
    for (int64_t i = 0; i < count; ++i)
      g[i] = static_cast<T>(static_cast<C>(g[i]) * (C(1) - aggregate(Aggregation::mean, out, in[i])));
  }
}

// Cloned functions cannot be templates.
#define MASKCL_SELECTS(U)                                                                               \
  MASKCL_CLONES void run_zero(U* g, const int32_t* in, int32_t out, int64_t count) {                    \
    zero_row(g, in, out, count);                                                                        \
  }                                                                                                     \
  MASKCL_CLONES void run_restore(U* p, const U* saved, const int32_t* in, int32_t out, int64_t count) { \
    restore_row(p, saved, in, out, count);                                                              \
  }
MASKCL_SELECTS(uint16_t)
MASKCL_SELECTS(uint32_t)
MASKCL_SELECTS(uint64_t)

#define MASKCL_SOFT(T, C)                                                                       \
  MASKCL_CLONES void run_soft(T* g, const C* in, C out, int64_t count, Aggregation how) {       \
    soft_row(g, in, out, count, how);                                                           \
  }
MASKCL_SOFT(float, float)
MASKCL_SOFT(double, double)
MASKCL_SOFT(BFloat16, float)
MASKCL_SOFT(Half, float)

// --- shapes ---------------------------------------------------------------------------------------------------------

// A weight [O, I, *] whose rows are dense blocks. `order` gives each memory position's in index where it is not
// position / K, as in channels_last.
struct Rows {
  int64_t count, columns, width, groups;
  std::vector<int64_t> order;

  int64_t column(int64_t position) const { return order.empty() ? position / (width / columns) : order[position]; }
};

// Nothing where the rows are not dense.
std::optional<Rows> rows_of(const Tensor& x, int64_t groups) {
  Rows rows{x.size(0), x.dim() > 1 ? x.size(1) : 1, 1, groups, {}};
  for (int64_t d = 1; d < x.dim(); ++d) rows.width *= x.size(d);
  if (x.is_contiguous() || x.numel() == 0) return rows;
  if (x.dim() < 2 || x.stride(0) != rows.width) return std::nullopt;
  std::vector<int64_t> dims(x.dim() - 1);
  std::iota(dims.begin(), dims.end(), 1);
  std::erase_if(dims, [&](int64_t d) { return x.size(d) == 1; });
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return x.stride(a) < x.stride(b); });
  int64_t expected = 1;
  for (const int64_t d : dims) {
    if (x.stride(d) != expected) return std::nullopt;
    expected *= x.size(d);
  }
  rows.order.resize(rows.width);
  for (int64_t position = 0; position < rows.width; ++position)
    rows.order[position] = x.size(1) == 1 ? 0 : position / x.stride(1) % x.size(1);
  return rows;
}

// A tensor that is not dense is worked on as a contiguous copy, written back at the end.
struct Dense {
  Tensor original, tensor;
  Rows rows;
  bool copied;

  Dense(const Tensor& x, int64_t groups, bool contiguous_only) : original(x), tensor(x), rows{}, copied(false) {
    auto found = contiguous_only && !x.is_contiguous() ? std::nullopt : rows_of(x, groups);
    if (!found) {
      tensor = torch::stable::contiguous(x);
      copied = true;
      found = rows_of(tensor, groups);
    }
    rows = *found;
  }
  void finish() {
    if (copied) torch::stable::copy_(original, tensor);
  }
};

// A task side as the kernel reads it: unit u's words, the one row that stands for every task repeated.
struct Side {
  Tensor tensor;
  const int64_t* data;
  int64_t stride, words;

  explicit Side(const Tensor& side)
      : tensor(torch::stable::contiguous(side)),
        data(static_cast<const int64_t*>(tensor.const_data_ptr())),
        stride(side.size(0) == 1 ? 0 : side.size(1)),
        words(side.size(1)) {
    MASKCL_CHECK(side.scalar_type() == ScalarType::Long, "grad_clamp: found tasks of dtype ",
                 torch::headeronly::toString(side.scalar_type()), ", wanted int64");
  }
  const int64_t* of(int64_t unit) const { return data + unit * stride; }
  bool any(int64_t unit) const {
    for (int64_t w = 0; w < words; ++w)
      if (of(unit)[w] != 0) return true;
    return false;
  }
};

// One unit of work: rows of one tensor, listed because only those with a task are visited.
struct Chunk {
  int64_t tensor, begin, end;
};

// Everything that the parallel region needs to know of one tensor.
struct Job {
  Dense dense;
  Side out, in;
  std::vector<int64_t> visited;          // rows with a task
  std::vector<std::vector<int32_t>> halves;  // [half][group * width + position], empty where no column has a bit

  Job(const Tensor& x, const Tensor& out_side, const Tensor& in_side, int64_t groups, bool contiguous_only)
      : dense(x, groups, contiguous_only), out(out_side), in(in_side) {}

  int64_t group(int64_t row) const { return dense.rows.groups == 1 ? 0 : row / (dense.rows.count / dense.rows.groups); }

  // exact: both 32-bit halves of every word. min: one half that says whether the unit has any task.
  void lay_out_columns(bool exact) {
    const Rows& rows = dense.rows;
    const int64_t columns = rows.columns * rows.groups, width = rows.width;
    halves.resize(exact ? 2 * in.words : 1);
    std::vector<int32_t> units(columns);
    for (size_t half = 0; half < halves.size(); ++half) {
      int32_t any = 0;
      for (int64_t u = 0; u < columns; ++u) {
        const uint64_t word = exact ? static_cast<uint64_t>(in.of(u)[half / 2]) : 0;
        units[u] = exact ? static_cast<int32_t>(static_cast<uint32_t>(half % 2 ? word >> 32 : word)) : -in.any(u);
        any |= units[u];
      }
      if (any == 0) continue;
      halves[half].resize(rows.groups * width);
      const int64_t repeat = rows.columns ? width / rows.columns : 0;
      for (int64_t g = 0; g < rows.groups; ++g) {
        int32_t* to = halves[half].data() + g * width;
        const int32_t* from = units.data() + g * rows.columns;
        if (rows.order.empty() && repeat == 1)
          std::copy_n(from, width, to);
        else
          for (int64_t p = 0; p < width; ++p) to[p] = from[rows.column(p)];
      }
    }
  }

  int32_t out_half(int64_t row, size_t half, bool exact) const {
    if (!exact) return -1;
    const uint64_t word = static_cast<uint64_t>(out.of(row)[half / 2]);
    return static_cast<int32_t>(static_cast<uint32_t>(half % 2 ? word >> 32 : word));
  }
};

std::vector<Chunk> plan(std::vector<Job>& jobs, bool all_rows) {
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < jobs.size(); ++t) {
    Job& job = jobs[t];
    if (job.dense.tensor.numel() == 0) continue;
    for (int64_t row = 0; row < job.dense.rows.count; ++row)
      if (all_rows || job.out.any(row)) job.visited.push_back(row);
    const int64_t count = job.visited.size(), step = std::max<int64_t>(1, kChunk / job.dense.rows.width);
    for (int64_t row = 0; row < count; row += step)
      chunks.push_back({static_cast<int64_t>(t), row, std::min(row + step, count)});
  }
  return chunks;
}

std::vector<Job> make_jobs(const char* op, const std::vector<Tensor>& tensors, const std::vector<Tensor>& outs,
                           const std::vector<Tensor>& ins, const std::vector<int64_t>& groups, bool contiguous_only) {
  const size_t count = tensors.size();
  MASKCL_CHECK(outs.size() == count && ins.size() == count && groups.size() == count, op,
               ": found lists of different lengths, wanted ", count);
  std::vector<Job> jobs;
  jobs.reserve(count);
  for (size_t t = 0; t < count; ++t) jobs.emplace_back(tensors[t], outs[t], ins[t], groups[t], contiguous_only);
  return jobs;
}

// Runs body(job, row) for every visited row of every chunk.
template <typename F>
void for_rows(const std::vector<Job>& jobs, const std::vector<Chunk>& chunks, const F& body) {
  parallel(chunks.size(), kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[c];
      for (int64_t r = chunk.begin; r < chunk.end; ++r) body(jobs[chunk.tensor], chunk.tensor, jobs[chunk.tensor].visited[r]);
    }
  });
}

// Runs body<U>() for the unsigned type of an element's size: selections move bits, whatever they mean.
template <typename F>
void dispatch_bits(size_t size, F&& body) {
  if (size == 2) return body.template operator()<uint16_t>();
  if (size == 4) return body.template operator()<uint32_t>();
  body.template operator()<uint64_t>();
}

// --- ops ------------------------------------------------------------------------------------------------------------

// Selects over all protected elements: row(pointer, offset, columns' bits, row's bits, width).
template <typename F>
void select(std::vector<Job>& jobs, bool exact, const F& row_body) {
  for (Job& job : jobs) job.lay_out_columns(exact);
  for_rows(jobs, plan(jobs, false), [&](const Job& job, int64_t t, int64_t row) {
    const int64_t width = job.dense.rows.width;
    for (size_t half = 0; half < job.halves.size(); ++half) {
      const int32_t bits = job.out_half(row, half, exact);
      if (bits != 0 && !job.halves[half].empty())
        row_body(job, t, row * width, job.halves[half].data() + job.group(row) * width, bits, width);
    }
  });
}

void scale_protected(std::vector<Job>& jobs, bool exact, Rule rule, const std::vector<double>& values, uint64_t seed) {
  for_rows(jobs, plan(jobs, rule == Rule::adahat), [&](const Job& job, int64_t t, int64_t row) {
    const Rows& rows = job.dense.rows;
    dispatch_float(job.dense.tensor.scalar_type(), "clamp_grads_", [&]<typename T>() {
      using C = compute_t<T>;
      T* g = static_cast<T*>(job.dense.tensor.mutable_data_ptr()) + row * rows.width;
      const int64_t first = job.group(row) * rows.columns;
      for (int64_t i = 0; i < rows.width; ++i) {
        const int n = users(job.out.of(row), job.in.of(first + rows.column(i)), job.out.words, exact);
        if (n == 0) continue;
        const float random = rule == Rule::random ? uniform(seed, t, row * rows.width + i) : 0.0f;
        g[i] = static_cast<T>(static_cast<C>(g[i]) * clamp_factor(rule, n, static_cast<C>(values[t]), random));
      }
    });
  });
}

void clamp_grads_cpu(const std::vector<Tensor>& grads, const std::vector<Tensor>& out_tasks,
                     const std::vector<Tensor>& in_tasks, const std::vector<int64_t>& groups, bool exact,
                     const std::string& rule_name, const std::vector<double>& values, int64_t seed) {
  const Rule rule = parse_rule(rule_name);
  auto jobs = make_jobs("clamp_grads_", grads, out_tasks, in_tasks, groups, rule == Rule::random);
  if (rule == Rule::hat) {
    select(jobs, exact, [](const Job& job, int64_t, int64_t offset, const int32_t* in, int32_t out, int64_t width) {
      dispatch_bits(job.dense.tensor.element_size(), [&]<typename U>() {
        run_zero(static_cast<U*>(job.dense.tensor.mutable_data_ptr()) + offset, in, out, width);
      });
    });
  } else {
    MASKCL_CHECK(values.size() == grads.size(), "clamp_grads_: found ", values.size(), " values, wanted ", grads.size());
    scale_protected(jobs, exact, rule, values, static_cast<uint64_t>(seed));
  }
  for (Job& job : jobs) job.dense.finish();
}

void restore_protected_cpu(const std::vector<Tensor>& params, const std::vector<Tensor>& saved,
                           const std::vector<Tensor>& out_tasks, const std::vector<Tensor>& in_tasks,
                           const std::vector<int64_t>& groups, bool exact) {
  auto jobs = make_jobs("restore_protected_", params, out_tasks, in_tasks, groups, false);
  std::vector<Tensor> copies;
  for (size_t t = 0; t < jobs.size(); ++t) copies.push_back(in_order_of(saved[t], jobs[t].dense.tensor));
  select(jobs, exact, [&](const Job& job, int64_t t, int64_t offset, const int32_t* in, int32_t out, int64_t width) {
    dispatch_bits(job.dense.tensor.element_size(), [&]<typename U>() {
      run_restore(static_cast<U*>(job.dense.tensor.mutable_data_ptr()) + offset,
                  static_cast<const U*>(copies[t].const_data_ptr()) + offset, in, out, width);
    });
  });
  for (Job& job : jobs) job.dense.finish();
}

void clamp_grads_soft_cpu(const std::vector<Tensor>& grads, const std::vector<Tensor>& out_masks,
                          const std::vector<Tensor>& in_masks, const std::vector<int64_t>& groups,
                          const std::string& aggregation) {
  const Aggregation how = parse_aggregation(aggregation);
  for (size_t t = 0; t < grads.size(); ++t) {
    if (grads[t].numel() == 0 || (out_masks[t].numel() == 0 && in_masks[t].numel() == 0)) continue;
    Dense dense(grads[t], groups[t], false);
    const Rows& rows = dense.rows;
    dispatch_float(dense.tensor.scalar_type(), "clamp_grads_soft_", [&]<typename T>() {
      using C = compute_t<T>;
      const ScalarType dtype = compute_dtype(dense.tensor.scalar_type());
      const Tensor out = to_dtype(out_masks[t], dtype), in = to_dtype(in_masks[t], dtype);
      const C* a = static_cast<const C*>(out.const_data_ptr());
      const C* b = static_cast<const C*>(in.const_data_ptr());
      // A side that is not there takes the other's value: min, max and mean of equals are that value.
      std::vector<C> columns(rows.groups * rows.width);
      if (in.numel() > 0)
        for (int64_t g = 0; g < rows.groups; ++g)
          for (int64_t p = 0; p < rows.width; ++p) columns[g * rows.width + p] = b[g * rows.columns + rows.column(p)];
      T* data = static_cast<T*>(dense.tensor.mutable_data_ptr());
      parallel(rows.count, rows.width, [&](int64_t begin, int64_t end) {
        std::vector<C> same(in.numel() > 0 ? 0 : rows.width);
        for (int64_t row = begin; row < end; ++row) {
          T* g = data + row * rows.width;
          const int64_t group = rows.groups == 1 ? 0 : row / (rows.count / rows.groups);
          const C* side = columns.data() + group * rows.width;
          if (in.numel() == 0) {
            std::fill(same.begin(), same.end(), a[row]);
            side = same.data();
          }
          if (out.numel() > 0) {
            run_soft(g, side, a[row], rows.width, how);
          } else {
            run_soft(g, side, C(1), rows.width, Aggregation::min);  // masks are at most 1
          }
        }
      });
    });
    dense.finish();
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("clamp_grads_", TORCH_BOX(&clamp_grads_cpu));
  m.impl("restore_protected_", TORCH_BOX(&restore_protected_cpu));
  m.impl("clamp_grads_soft_", TORCH_BOX(&clamp_grads_soft_cpu));
}

}  // namespace maskcl
