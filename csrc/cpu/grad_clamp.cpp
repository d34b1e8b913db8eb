// Protection of a whole model's gradients: one parallel region for all tensors.
//
// A tensor is O rows of I * K elements. Rows whose unit has no task are skipped without being read. For the others the
// in side is laid out once, as 32-bit halves of the task words in the memory order of a row, so that rule hat is a load,
// a test and a store an element, whatever the tasks are.

#include <algorithm>
#include <limits>

#include "unit_rows.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// --- loops ----------------------------------------------------------------------------------------------------------

// g = 0 where (out & in) != 0, by integer masks, so that NaN and infinity become 0 as well.
template <typename U>
MASKCL_INLINE void zero_row(U* g, int32_t out, const int32_t* in, int64_t count) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) g[i] = (out & in[i]) != 0 ? U(0) : g[i];
}

template <typename U>
MASKCL_INLINE void restore_row(U* p, const U* saved, int32_t out, const int32_t* in, int64_t count) {
  MASKCL_VECTORIZE
  for (int64_t i = 0; i < count; ++i) p[i] = (out & in[i]) != 0 ? saved[i] : p[i];
}

template <typename T, typename C>
MASKCL_INLINE void soft_row(T* g, C out, const C* in, int64_t count, Aggregation how) {
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
  MASKCL_CLONES void run_zero(U* g, int32_t out, const int32_t* in, int64_t count) {                    \
    zero_row(g, out, in, count);                                                                        \
  }                                                                                                     \
  MASKCL_CLONES void run_restore(U* p, const U* saved, int32_t out, const int32_t* in, int64_t count) { \
    restore_row(p, saved, out, in, count);                                                              \
  }
MASKCL_SELECTS(uint16_t)
MASKCL_SELECTS(uint32_t)
MASKCL_SELECTS(uint64_t)

#define MASKCL_SOFT(T, C)                                                                       \
  MASKCL_CLONES void run_soft(T* g, C out, const C* in, int64_t count, Aggregation how) {       \
    soft_row(g, out, in, count, how);                                                           \
  }
MASKCL_SOFT(float, float)
MASKCL_SOFT(double, double)
MASKCL_SOFT(BFloat16, float)
MASKCL_SOFT(Half, float)

// --- ops ------------------------------------------------------------------------------------------------------------

// Selects over all protected elements: body(job, tensor, offset of a row, its bits, the columns' bits, width).
template <typename F>
void select(std::vector<Job>& jobs, bool exact, const F& body) {
  for (Job& job : jobs) job.lay_out_columns(exact);
  for_rows(jobs, plan(jobs, false), [&](const Job& job, int64_t t, int64_t row) {
    const int64_t width = job.dense.rows.width, first = job.dense.rows.group(row) * width;
    for (size_t half = 0; half < job.halves.size(); ++half) {
      const int32_t out = job.out_half(row, half, exact);
      if (out != 0 && !job.halves[half].empty())
        body(job, t, row * width, out, job.halves[half].data() + first, width);
    }
  });
}

void scale_protected(std::vector<Job>& jobs, bool exact, Rule rule, const std::vector<double>& values, uint64_t seed) {
  for_rows(jobs, plan(jobs, rule == Rule::adahat), [&](const Job& job, int64_t t, int64_t row) {
    const Rows& rows = job.dense.rows;
    dispatch_float(job.dense.tensor.scalar_type(), "clamp_grads_", [&]<typename T>() {
      using C = compute_t<T>;
      T* g = data<T>(job.dense.tensor) + row * rows.width;
      const int64_t first = rows.group(row) * rows.columns;
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
  const char* op = "clamp_grads_";
  const Rule rule = parse_rule(rule_name);
  if (rule != Rule::hat) check_length(op, "values", values.size(), grads.size());
  auto jobs = make_jobs(op, grads, out_tasks, in_tasks, groups, rule == Rule::random);
  if (rule == Rule::hat) {
    select(jobs, exact, [](const Job& job, int64_t, int64_t offset, int32_t out, const int32_t* in, int64_t width) {
      dispatch_bits(job.dense.tensor.element_size(), [&]<typename U>() {
        run_zero(data<U>(job.dense.tensor) + offset, out, in, width);
      });
    });
  } else {
    scale_protected(jobs, exact, rule, values, static_cast<uint64_t>(seed));
  }
  for (Job& job : jobs) job.dense.finish();
}

void restore_protected_cpu(const std::vector<Tensor>& params, const std::vector<Tensor>& saved,
                           const std::vector<Tensor>& out_tasks, const std::vector<Tensor>& in_tasks,
                           const std::vector<int64_t>& groups, bool exact) {
  const char* op = "restore_protected_";
  check_length(op, "saved", saved.size(), params.size());
  for (size_t t = 0; t < params.size(); ++t) check_saved(op, t, saved[t], params[t]);
  auto jobs = make_jobs(op, params, out_tasks, in_tasks, groups, false);
  std::vector<Tensor> copies;
  for (size_t t = 0; t < jobs.size(); ++t) copies.push_back(in_order_of(saved[t], jobs[t].dense.tensor));
  select(jobs, exact, [&](const Job& job, int64_t t, int64_t offset, int32_t out, const int32_t* in, int64_t width) {
    dispatch_bits(job.dense.tensor.element_size(), [&]<typename U>() {
      run_restore(data<U>(job.dense.tensor) + offset, const_data<U>(copies[t]) + offset, out, in, width);
    });
  });
  for (Job& job : jobs) job.dense.finish();
}

void clamp_grads_soft_cpu(const std::vector<Tensor>& grads, const std::vector<Tensor>& out_masks,
                          const std::vector<Tensor>& in_masks, const std::vector<int64_t>& groups,
                          const std::string& aggregation) {
  const char* op = "clamp_grads_soft_";
  const Aggregation how = parse_aggregation(aggregation);
  check_length(op, "groups", groups.size(), grads.size());
  check_length(op, "out_masks", out_masks.size(), grads.size());
  check_length(op, "in_masks", in_masks.size(), grads.size());
  for (size_t t = 0; t < grads.size(); ++t) {
    check_rows(op, t, grads[t], groups[t]);
    check_masks(op, t, grads[t], groups[t], out_masks[t], in_masks[t]);
  }
  for (size_t t = 0; t < grads.size(); ++t) {
    if (grads[t].numel() == 0 || (out_masks[t].numel() == 0 && in_masks[t].numel() == 0)) continue;
    Dense dense(grads[t], groups[t], false);
    const Rows& rows = dense.rows;
    dispatch_float(dense.tensor.scalar_type(), op, [&]<typename T>() {
      using C = compute_t<T>;
      const ScalarType dtype = compute_dtype(dense.tensor.scalar_type());
      const Tensor out = to_dtype(out_masks[t], dtype), in = to_dtype(in_masks[t], dtype);
      const C *a = const_data<C>(out), *b = const_data<C>(in);
      // From one unit to the next; 0: one element stands for all.
      const int64_t out_step = out.numel() == 1 ? 0 : 1, in_step = in.numel() == 1 ? 0 : 1;
      // A side that is not there takes the other's value: min, max and mean of equals are that value.
      std::vector<C> columns(rows.groups * rows.width);
      if (in.numel() > 0)
        for (int64_t g = 0; g < rows.groups; ++g)
          for (int64_t p = 0; p < rows.width; ++p)
            columns[g * rows.width + p] = b[(g * rows.columns + rows.column(p)) * in_step];
      T* to = data<T>(dense.tensor);
      parallel(rows.count, rows.width, [&](int64_t begin, int64_t end) {
        std::vector<C> same(in.numel() > 0 ? 0 : rows.width);
        for (int64_t row = begin; row < end; ++row) {
          T* g = to + row * rows.width;
          const C* side = columns.data() + rows.group(row) * rows.width;
          if (in.numel() == 0) {
            std::fill(same.begin(), same.end(), a[row * out_step]);
            side = same.data();
          }
          if (out.numel() > 0) {
            run_soft(g, a[row * out_step], side, rows.width, how);
          } else {
            run_soft(g, -std::numeric_limits<C>::infinity(), side, rows.width, Aggregation::max);  // the other's value
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
