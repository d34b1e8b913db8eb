// The bits of a weight mask, as the CPU's kernels read them; a row of a weight may start inside a word.
#pragma once

#include "../mask_words.h"
#include "parallel.h"

namespace maskcl {

inline Planes planes_of(const Tensor& words) {
  const auto* on = const_data<uint32_t>(words);
  return {on, words.dim() == 2 ? on + words.size(1) : nullptr};
}

// 32 bits from bit `index` on; those past `count` are 0.
MASKCL_INLINE uint32_t word_at(const uint32_t* plane, int64_t index, int64_t count) {
  const int64_t word = index / kWord;
  const int shift = static_cast<int>(index % kWord);
  const uint64_t high = shift && (word + 1) * kWord < count ? plane[word + 1] : 0;
  return static_cast<uint32_t>((high << 32 | plane[word]) >> shift);
}

// Weights [first, first + count) of the contiguous weight times their mask into `out`, on several threads.
void packed_select_into(const Tensor& weight, Planes planes, void* out, int64_t first, int64_t count);

}  // namespace maskcl
