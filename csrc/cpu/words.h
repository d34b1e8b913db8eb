// The bits of a weight mask, as the kernels read them: bit i % 32 of word i // 32 is weight i in row-major order; a row of
// a weight may start inside a word.
#pragma once

#include "parallel.h"

namespace maskcl {

constexpr int64_t kWord = 32;

inline int64_t words_for(int64_t count) { return (count + kWord - 1) / kWord; }

// The planes of a mask; negative is null for a binary one.
struct Planes {
  const uint32_t* on;
  const uint32_t* negative;
};

inline Planes planes_of(const Tensor& words) {
  const auto* on = static_cast<const uint32_t*>(words.const_data_ptr());
  return {on, words.dim() == 2 ? on + words.size(1) : nullptr};
}

// 32 bits from bit `index` on; those past `count` are 0.
MASKCL_INLINE uint32_t word_at(const uint32_t* words, int64_t index, int64_t count) {
  const int64_t word = index / kWord;
  const int shift = static_cast<int>(index % kWord);
  const uint64_t high = shift && (word + 1) * kWord < count ? words[word + 1] : 0;
  return static_cast<uint32_t>((high << 32 | words[word]) >> shift);
}

// Weights [first, first + count) of the contiguous weight times their mask into `out`, on several threads.
void select_rows(const Tensor& weight, Planes planes, const Tensor& out, int64_t first, int64_t count);

}  // namespace maskcl
