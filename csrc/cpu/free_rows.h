// The elements of a list of weights that are not protected, as spans of memory for one parallel region.
//
// A row whose unit shares no task with a column is free and joins its neighbours in one long span; a row of which every
// column is protected is skipped unread. For the others the columns' bits are laid out in the memory order of a row,
// and a run of 16 elements is left out where all of it is protected; elsewhere a span comes with its elements' bits.
#pragma once

#include <atomic>

#include "unit_rows.h"

namespace maskcl {

constexpr int64_t kRun = 16;  // elements, 64 bytes of float32

struct Span {
  int64_t begin, end;
  bool mixed;
};

// Spans of one piece of memory of `length` elements, and the bits of these, which only mixed spans ask for. `far`: of a
// weight that no cache near a core holds, in pieces.
struct Spans {
  const Span* spans;
  int64_t count;
  const int32_t* hits;
  int64_t length;
  bool far = false;
};

// hits[i] has a bit where an element is protected: those of `out` that in[i] has, beside what is there.
void add_hits(int32_t* hits, int32_t out, const int32_t* in, int64_t count, bool fresh);

// Of a row with these hits, what is not wholly protected.
void find_spans(const int32_t* hits, int64_t count, std::vector<Span>& spans);

// One side of a weight: unit u's task words.
struct Words {
  const int64_t* data;
  int64_t step, count;  // step: from one unit to the next; 0: one row stands for all

  uint64_t word(int64_t unit, int64_t w) const { return static_cast<uint64_t>(data[unit * step + w]); }
  bool any(int64_t unit) const {
    for (int64_t w = 0; w < count; ++w)
      if (word(unit, w) != 0) return true;
    return false;
  }
};

// One weight with both of its sides. Words are the tasks, or, not exact, one that says whether there is any.
class FreeRows {
 public:
  FreeRows(const Rows& layout, Words out, Words in, bool exact)
      : rows_(layout.count), width_(layout.width), group_rows_(std::max<int64_t>(layout.count / layout.groups, 1)),
        numel_(rows_ * width_), exact_(exact), out_(out), in_(in), words_(exact ? out.count : 1) {
    int64_t columns = layout.columns;
    // A bias is one row whose columns are its units: a row a unit would be as many calls.
    if (width_ == 1 && layout.groups == 1) {
      std::swap(out_, in_);
      std::swap(rows_, width_);
      group_rows_ = 1;
      columns = width_;
    }
    if (numel_ > 0 && sort_rows(columns)) lay_out(layout, columns);
    if (kinds_.empty()) {  // nothing is protected: of whatever shape
      width_ = kRow;
      rows_ = ceil_div(numel_, kRow);
    }
  }

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }
  bool is_skipped(int64_t row) const { return !kinds_.empty() && kinds_[row] == Kind::skipped; }

  // What one thread found of a row, for the next one with the same tasks.
  struct Found {
    const FreeRows* of = nullptr;
    int64_t row = 0;
    std::vector<int32_t> hits;
    std::vector<Span> spans;
  };

  // Calls body(offset, spans) for what is not protected of these rows: all of a mixed row at once, as spans may be short.
  template <typename F>
  void for_spans(int64_t begin, int64_t end, Found& found, const F& body) const {
    for (int64_t row = begin; row < end;) {
      if (is_free(row)) {
        const int64_t first = row;
        while (row < end && is_free(row)) ++row;
        const Span all{0, std::min(row * width_, numel_) - first * width_, false};
        body(first * width_, Spans{&all, 1, nullptr, all.end, is_far()});
        continue;
      }
      if (kinds_[row] == Kind::mixed) {
        find(row, found);
        const int64_t count = found.spans.size();
        body(row * width_, Spans{found.spans.data(), count, found.hits.data(), width_, is_far()});
      }
      ++row;
    }
  }

 private:
  static constexpr int64_t kRow = 1024;  // what a row is where nothing is protected
  static constexpr int64_t kNear = int64_t{1} << 17;  // elements of a weight, of which Adam's step reads 2 MB
  enum class Kind : uint8_t { free, skipped, mixed };

  // Where nothing is protected all is one span, which the hardware fetches.
  bool is_far() const { return !kinds_.empty() && numel_ > kNear; }
  bool is_free(int64_t row) const { return kinds_.empty() || kinds_[row] == Kind::free; }
  uint64_t word(const Words& side, int64_t unit, int64_t w) const {
    return exact_ ? side.word(unit, w) : side.any(unit);
  }

  // Finds each row's kind from the tasks of any column and those of every one; false where no row is mixed.
  bool sort_rows(int64_t columns) {
    return exact_ ? sort_rows(columns, [](const Words& side, int64_t unit, int64_t w) { return side.word(unit, w); })
                  : sort_rows(columns, [](const Words& side, int64_t unit, int64_t) { return uint64_t{side.any(unit)}; });
  }
  template <typename F>
  bool sort_rows(int64_t columns, const F& word_of) {
    const int64_t units = in_.step ? rows_ / group_rows_ * columns : 1, listed = out_.step ? rows_ : 1;
    std::vector<uint64_t> any(words_, 0), every(words_, ~uint64_t{0});
    uint64_t shared = 0;
    for (int64_t w = 0; w < words_; ++w) {
      uint64_t used = 0, of_any = 0, of_every = ~uint64_t{0};
      for (int64_t row = 0; row < listed; ++row) used |= word_of(out_, row, w);
      if (used == 0) continue;
      for (int64_t u = 0; u < units; ++u) {
        const uint64_t column = word_of(in_, u, w);
        of_any |= column;
        of_every &= column;
      }
      any[w] = of_any, every[w] = of_every;
      shared |= used & of_any;
    }
    if (shared == 0) return false;
    kinds_.assign(rows_, Kind::free);
    for (int64_t w = 0; w < words_; ++w)
      for (int64_t row = 0; row < rows_ && any[w] != 0; ++row) {
        const uint64_t bits = word_of(out_, row, w);
        if (bits & every[w]) kinds_[row] = Kind::skipped;
        if ((bits & any[w]) && kinds_[row] == Kind::free) kinds_[row] = Kind::mixed;
      }
    any_ = std::move(any);
    return std::find(kinds_.begin(), kinds_.end(), Kind::mixed) != kinds_.end();
  }

  // The columns' bits in the memory order of a row, as halves of words, for those that some column has.
  void lay_out(const Rows& layout, int64_t columns) {
    const int64_t groups = rows_ / group_rows_, repeat = width_ / columns;
    std::vector<int32_t> bits(columns);
    halves_.resize(2 * words_);
    for (int64_t half = 0; half < 2 * words_; ++half) {
      if (half_of(any_[half / 2], half) == 0) continue;
      halves_[half].resize(groups * width_);
      int32_t* to = halves_[half].data();
      for (int64_t g = 0; g < groups; ++g, to += width_) {
        for (int64_t c = 0; c < columns; ++c) bits[c] = half_of(word(in_, g * columns + c, half / 2), half);
        if (repeat == 1)
          std::copy(bits.begin(), bits.end(), to);
        else if (layout.order.empty())
          for (int64_t c = 0; c < columns; ++c) std::fill_n(to + c * repeat, repeat, bits[c]);
        else
          for (int64_t p = 0; p < width_; ++p) to[p] = bits[layout.order[p]];
      }
    }
  }
  static int32_t half_of(uint64_t word, int64_t half) {
    return static_cast<int32_t>(static_cast<uint32_t>(half % 2 ? word >> 32 : word));
  }

  void find(int64_t row, Found& found) const {
    if (found.of == this && same_class(row, found.row)) return;
    found.of = this;
    found.row = row;
    found.hits.resize(width_);
    bool fresh = true;
    for (size_t half = 0; half < halves_.size(); ++half) {
      const int32_t out = half_of(word(out_, row, half / 2), half);
      if (out == 0 || halves_[half].empty()) continue;
      add_hits(found.hits.data(), out, halves_[half].data() + row / group_rows_ * width_, width_, fresh);
      fresh = false;
    }
    find_spans(found.hits.data(), width_, found.spans);
  }
  bool same_class(int64_t row, int64_t other) const {
    if (row / group_rows_ != other / group_rows_) return false;
    for (int64_t w = 0; w < words_; ++w)
      if (word(out_, row, w) != word(out_, other, w)) return false;
    return true;
  }

  int64_t rows_, width_, group_rows_, numel_;
  bool exact_;
  Words out_, in_;
  int64_t words_;
  std::vector<Kind> kinds_;  // of each row; empty where all are free
  std::vector<uint64_t> any_;
  std::vector<std::vector<int32_t>> halves_;  // [half][group * width + position], empty where no column has a bit
};

// Rows of one weight; `cost` elements of them are not skipped.
struct RowChunk {
  int64_t weight, begin, end, cost;
};

inline void add_chunks(const FreeRows& rows, int64_t weight, std::vector<RowChunk>& chunks) {
  RowChunk chunk{weight, 0, 0, 0};
  for (int64_t row = 0; row < rows.rows(); ++row) {
    if (rows.is_skipped(row)) continue;
    if (chunk.cost == 0) chunk.begin = row;
    chunk.cost += rows.width();
    chunk.end = row + 1;
    if (chunk.cost < kChunk) continue;
    chunks.push_back(chunk);
    chunk.cost = 0;
  }
  if (chunk.cost > 0) chunks.push_back(chunk);
}

// Calls body(chunk, index, found) for every chunk. Threads take the next one when they are done: how much of a mixed
// row is left is not known beforehand.
template <typename F>
void for_chunks(const std::vector<RowChunk>& chunks, int64_t grain, const F& body) {
  int64_t cost = 0;
  for (const RowChunk& chunk : chunks) cost += chunk.cost;
  const int64_t count = chunks.size();
  std::atomic<int64_t> next{0};
  auto work = [&](int64_t, int64_t) {
    static thread_local FreeRows::Found found;  // memory that stays from call to call
    found.of = nullptr;
    const FlushSubnormals flush;
    for (int64_t c = next++; c < count; c = next++) body(chunks[c], c, found);
  };
  const int64_t threads = std::min<int64_t>(ceil_div(cost, grain), torch::stable::get_num_threads());
  if (threads <= 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, threads, 1, work);
}

}  // namespace maskcl
