// Lists of tensors that travel by value in a kernel's parameters: one launch for a whole model, no copy to the device,
// no synchronisation.
#pragma once

#include "common.cuh"

namespace maskcl::gpu {

// CUDA 12.1 raised the parameters of a kernel from 4 KB to 32 KB; every driver of CUDA 13 knows it.
constexpr size_t kFewParameters = 4096;
#if CUDART_VERSION >= 13000
constexpr size_t kMostParameters = 32764;
#else
constexpr size_t kMostParameters = kFewParameters;
#endif
constexpr size_t kOtherParameters = 64;  // what a kernel takes besides its table

// Entry has int64_t first_block, which launch_entries fills in, and int64_t blocks() const.
template <typename Entry, int N>
struct Table {
  Entry entries[N];
  int32_t count;
};

template <typename Entry>
constexpr int table_size(size_t bytes, size_t others) {
  return static_cast<int>((bytes - others - sizeof(int64_t)) / sizeof(Entry));
}

template <typename Entry, int N>
__device__ __forceinline__ const Entry& entry_of_block(const Table<Entry, N>& table) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.entries[middle].first_block <= blockIdx.x)
      low = middle;
    else
      high = middle - 1;
  }
  return table.entries[low];
}

template <int N, size_t Others, typename Entry, typename F>
void launch_table(const char* op, const Entry* entries, size_t count, F&& launch) {
  static_assert(sizeof(Table<Entry, N>) + Others <= kMostParameters);
  Table<Entry, N> table;
  table.count = static_cast<int32_t>(count);
  int64_t blocks = 0;
  for (size_t k = 0; k < count; ++k) {
    Entry& e = table.entries[k] = entries[k];
    e.first_block = blocks;
    blocks += e.blocks();
  }
  MASKCL_CHECK(blocks < (int64_t{1} << 31), op, ": the list needs ", blocks, " blocks, a GPU takes 2^31 - 1");
  if (blocks == 0) return;
  launch(table, static_cast<unsigned>(blocks));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls launch(table, blocks): once for as many tensors as parameters hold, with few parameters where these suffice.
template <size_t Others = kOtherParameters, typename Entry, typename F>
void launch_entries(const char* op, const std::vector<Entry>& entries, F&& launch) {
  constexpr int kSmall = table_size<Entry>(kFewParameters, Others);
  constexpr int kLarge = table_size<Entry>(kMostParameters, Others);
  for (size_t first = 0; first < entries.size(); first += kLarge) {
    const size_t count = std::min<size_t>(entries.size() - first, kLarge);
    if (count <= kSmall)
      launch_table<kSmall, Others>(op, entries.data() + first, count, launch);
    else
      launch_table<kLarge, Others>(op, entries.data() + first, count, launch);
  }
}

// For each dtype of the list: fill(entries, t) for its tensors, then run<T>(entries).
template <typename Entry, typename Fill, typename Run>
void for_dtypes(const char* op, const std::vector<Tensor>& tensors, Fill&& fill, Run&& run) {
  std::vector<bool> done(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (done[t]) continue;
    const ScalarType dtype = tensors[t].scalar_type();
    std::vector<Entry> entries;
    for (size_t other = t; other < tensors.size(); ++other) {
      if (tensors[other].scalar_type() != dtype) continue;
      done[other] = true;
      fill(entries, other);
    }
    dispatch_float(dtype, op, [&]<typename T>() { run.template operator()<T>(entries); });
  }
}

}  // namespace maskcl::gpu
