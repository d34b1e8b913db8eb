// Masks and scores to words, and words to masks.
#pragma once

#include <algorithm>

#include "words.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// --- loops, one copy an instruction set -----------------------------------------------------------------------------

// Elements [begin, end) of a mask whose patterns of 1 and -1 are given; begin is a word's first.
template <typename U>
MASKCL_INLINE void unpack_range(Planes planes, U* y, int64_t begin, int64_t end, U one, U minus_one) {
  const U turn = one ^ minus_one;
  for (int64_t i = begin; i < end; i += kWord) {
    const uint32_t on = planes.on[i / kWord], negative = planes.negative ? planes.negative[i / kWord] : 0;
    U all[kWord];
    for (uint32_t j = 0; j < kWord; ++j) {
      const U turned = one ^ (turn & static_cast<U>(U(0) - static_cast<U>(negative >> j & 1)));
      all[j] = turned & static_cast<U>(U(0) - static_cast<U>(on >> j & 1));
    }
    memcpy(y + i, all, sizeof(U) * std::min(kWord, end - i));
  }
}

// Words [first, last) of `count` elements whose levels, negative, 0 or positive, are level_at(i).
template <typename F>
MASKCL_INLINE void pack_words(uint32_t* on, uint32_t* negative, int64_t first, int64_t last, int64_t count,
                              const F& level_at) {
  for (int64_t word = first; word < last; ++word) {
    const int64_t from = word * kWord, left = std::min(kWord, count - from);
    uint32_t some = 0, less = 0;
    if (left == kWord) {
      for (uint32_t j = 0; j < kWord; ++j) some |= static_cast<uint32_t>(level_at(from + j) != 0) << j;
      if (negative)
        for (uint32_t j = 0; j < kWord; ++j) less |= static_cast<uint32_t>(level_at(from + j) < 0) << j;
    } else {
      for (uint32_t j = 0; j < left; ++j) {
        some |= static_cast<uint32_t>(level_at(from + j) != 0) << j;
        less |= static_cast<uint32_t>(level_at(from + j) < 0) << j;
      }
    }
    on[word] = some;
    if (negative) negative[word] = less;
  }
}

template <typename S, typename C>
MASKCL_INLINE void pack_scores_range(const S* scores, uint32_t* on, uint32_t* negative, int64_t first, int64_t last,
                                     int64_t count, Levels levels, C threshold) {
  dispatch_levels(levels, [&]<Levels L>() __attribute__((always_inline)) {
    if constexpr (L != Levels::soft)
      pack_words(on, negative, first, last, count, [=](int64_t i) __attribute__((always_inline)) {
        return level<L>(static_cast<C>(scores[i]), threshold);
      });
  });
}

// Cloned functions cannot be templates, so each dtype names its own.
#define MASKCL_UNPACK(U)                                                                                      \
  MASKCL_CLONES void run_unpack(Planes p, U* y, int64_t begin, int64_t end, U one, U minus_one) {             \
    unpack_range<U>(p, y, begin, end, one, minus_one);                                                        \
  }
MASKCL_UNPACK(uint8_t)
MASKCL_UNPACK(uint16_t)
MASKCL_UNPACK(uint32_t)
MASKCL_UNPACK(uint64_t)

#define MASKCL_SCORES(CLONES, T, C)                                                                                    \
  CLONES void run_pack_scores(const T* s, uint32_t* on, uint32_t* negative, int64_t first, int64_t last, int64_t count, \
                              Levels levels, C threshold) {                                                            \
    pack_scores_range<T, C>(s, on, negative, first, last, count, levels, threshold);                                   \
  }
MASKCL_SCORES(MASKCL_CLONES, float, float)
MASKCL_SCORES(MASKCL_CLONES, BFloat16, float)
MASKCL_SCORES(, Half, float)  // its conversions do not vectorise
MASKCL_SCORES(, double, double)  // for checks, not for speed

#define MASKCL_PACK(CLONES, T)                                                                                        \
  CLONES void run_pack(const T* mask, uint32_t* on, uint32_t* negative, int64_t first, int64_t last, int64_t count) { \
    pack_words(on, negative, first, last, count, [=](int64_t i) __attribute__((always_inline)) { return mask[i]; });  \
  }
MASKCL_PACK(MASKCL_CLONES, float)
MASKCL_PACK(MASKCL_CLONES, uint8_t)
MASKCL_PACK(MASKCL_CLONES, int8_t)
MASKCL_PACK(, double)

// --- work division --------------------------------------------------------------------------------------------------

// Runs body(on, negative, first, last) for the words of `count` weights, some at a time.
template <typename F>
void by_words(const FreshWords& words, int64_t count, const F& body) {
  parallel(words_for(count), kWord, [&](int64_t first, int64_t last) { body(words.on, words.negative, first, last); });
}

// The whole mask, its patterns of 1 and -1 given, into `out`.
template <typename U>
void unpack(const Tensor& words, const Tensor& out, U one, U minus_one) {
  const Planes planes = planes_of(words);
  U* to = data<U>(out);
  const int64_t count = out.numel();
  parallel(words_for(count), kWord, [&](int64_t first, int64_t last) {
    run_unpack(planes, to, first * kWord, std::min(last * kWord, count), one, minus_one);
  });
}

}  // namespace
}  // namespace maskcl
