// The weights of a list as the rows of their out units, with what is known of the units of both sides; and the rows of
// the whole list that are visited, as units of work for one parallel region.
#pragma once

#include <algorithm>
#include <numeric>

#include "parallel.h"

namespace maskcl {

constexpr int64_t kChunk = 16384;  // elements of a unit of work

// --- shapes ---------------------------------------------------------------------------------------------------------

// A weight [O, I, *] whose rows are dense blocks. `order` gives each memory position's in index where it is not
// position / K, as in channels_last.
struct Rows {
  int64_t count, columns, width, groups;
  std::vector<int64_t> order;

  int64_t group(int64_t row) const { return groups == 1 ? 0 : row / (count / groups); }
  int64_t column(int64_t position) const { return order.empty() ? position / (width / columns) : order[position]; }
};

// Nothing where the rows are not dense.
inline std::optional<Rows> rows_of(const Tensor& x, int64_t groups) {
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
  int64_t step, words;  // step: from one unit to the next; 0: one row stands for all

  explicit Side(const Tensor& side)
      : tensor(side.is_contiguous() ? side : torch::stable::contiguous(side)),  // the latter is a call of the dispatcher
        data(const_data<int64_t>(tensor)),
        step(side.size(0) == 1 ? 0 : side.size(1)),
        words(side.size(1)) {}
  const int64_t* of(int64_t unit) const { return data + unit * step; }
  bool any_task(int64_t unit) const {
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
  std::vector<int64_t> visited;              // rows with a task
  std::vector<std::vector<int32_t>> halves;  // [half][group * width + position], empty where no column has a bit

  Job(const Tensor& x, const Tensor& out_tasks, const Tensor& in_tasks, int64_t groups, bool contiguous_only)
      : dense(x, groups, contiguous_only), out(out_tasks), in(in_tasks) {}

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
        units[u] = exact ? static_cast<int32_t>(static_cast<uint32_t>(half % 2 ? word >> 32 : word)) : -in.any_task(u);
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

// The rows with a task, or all, and chunks of about the same size of them.
inline std::vector<Chunk> plan(std::vector<Job>& jobs, bool all_rows) {
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < jobs.size(); ++t) {
    Job& job = jobs[t];
    if (job.dense.tensor.numel() == 0) continue;
    for (int64_t row = 0; row < job.dense.rows.count; ++row)
      if (all_rows || job.out.any_task(row)) job.visited.push_back(row);
    const int64_t count = job.visited.size(), step = std::max<int64_t>(1, kChunk / job.dense.rows.width);
    for (int64_t row = 0; row < count; row += step)
      chunks.push_back({static_cast<int64_t>(t), row, std::min(row + step, count)});
  }
  return chunks;
}

inline std::vector<Job> make_jobs(const char* op, const std::vector<Tensor>& tensors,
                                  const std::vector<Tensor>& out_tasks, const std::vector<Tensor>& in_tasks,
                                  const std::vector<int64_t>& groups, bool contiguous_only) {
  const size_t count = tensors.size();
  check_length(op, "groups", groups.size(), count);
  check_length(op, "out_tasks", out_tasks.size(), count);
  check_length(op, "in_tasks", in_tasks.size(), count);
  for (size_t t = 0; t < count; ++t) {
    check_rows(op, t, tensors[t], groups[t]);
    check_tasks(op, t, tensors[t], groups[t], out_tasks[t], in_tasks[t]);
  }
  std::vector<Job> jobs;
  jobs.reserve(count);
  for (size_t t = 0; t < count; ++t)
    jobs.emplace_back(tensors[t], out_tasks[t], in_tasks[t], groups[t], contiguous_only);
  return jobs;
}

// Runs body(job, tensor, row) for every visited row of every chunk.
template <typename F>
void for_rows(const std::vector<Job>& jobs, const std::vector<Chunk>& chunks, const F& body) {
  parallel(chunks.size(), kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[c];
      const Job& job = jobs[chunk.tensor];
      for (int64_t r = chunk.begin; r < chunk.end; ++r) body(job, chunk.tensor, job.visited[r]);
    }
  });
}

}  // namespace maskcl
