// Weight masks of one bit (ternary: two) a weight: packing, set operations, and weights that are read through the bits.

#include <algorithm>
#include <vector>

#include "words.h"

namespace maskcl {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// --- loops, one copy an instruction set -----------------------------------------------------------------------------

// Weights [begin, end) of `count`, as patterns of their bits.
template <typename U>
MASKCL_INLINE void select_range(const U* w, Planes planes, U* y, int64_t begin, int64_t end, int64_t count) {
  for (int64_t i = begin; i < end; i += kWord) {
    const uint32_t on = word_at(planes.on, i, count);
    const uint32_t negative = planes.negative ? word_at(planes.negative, i, count) : 0;
    const int64_t left = std::min(kWord, end - i);
    if (left == kWord) {
      MASKCL_VECTORIZE
      for (uint32_t j = 0; j < kWord; ++j) y[i + j] = select_bits<U>(w[i + j], on >> j & 1, negative >> j & 1);
    } else {
      for (uint32_t j = 0; j < left; ++j) y[i + j] = select_bits<U>(w[i + j], on >> j & 1, negative >> j & 1);
    }
  }
}

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

MASKCL_CLONES void run_select(const uint16_t* w, Planes p, uint16_t* y, int64_t begin, int64_t end, int64_t count) {
  select_range(w, p, y, begin, end, count);
}
MASKCL_CLONES void run_select(const uint32_t* w, Planes p, uint32_t* y, int64_t begin, int64_t end, int64_t count) {
  select_range(w, p, y, begin, end, count);
}
void run_select(const uint64_t* w, Planes p, uint64_t* y, int64_t begin, int64_t end, int64_t count) {
  select_range(w, p, y, begin, end, count);
}

#define MASKCL_UNPACK(U)                                                                                      \
  MASKCL_CLONES void run_unpack(Planes p, U* y, int64_t begin, int64_t end, U one, U minus_one) {             \
    unpack_range<U>(p, y, begin, end, one, minus_one);                                                        \
  }
MASKCL_UNPACK(uint8_t)
MASKCL_UNPACK(uint16_t)
MASKCL_UNPACK(uint32_t)
MASKCL_UNPACK(uint64_t)

// Cloned functions cannot be templates, so each dtype names its own.
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

MASKCL_CLONES int64_t run_popcount(const uint32_t* words, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += __builtin_popcount(words[i]);
  return sum;
}

enum class Combine { both, either, differ, without };

MASKCL_CLONES void run_combine(const uint32_t* a, const uint32_t* b, uint32_t* out, int64_t count, Combine how) {
  switch (how) {
    case Combine::both:
      for (int64_t i = 0; i < count; ++i) out[i] = a[i] & b[i];
      break;
    case Combine::either:
      for (int64_t i = 0; i < count; ++i) out[i] = a[i] | b[i];
      break;
    case Combine::differ:
      for (int64_t i = 0; i < count; ++i) out[i] = a[i] ^ b[i];
      break;
    case Combine::without:
      for (int64_t i = 0; i < count; ++i) out[i] = a[i] & ~b[i];
      break;
  }
}

// --- work division --------------------------------------------------------------------------------------------------

Tensor empty_words(const Tensor& like, int64_t count, bool ternary) {
  if (ternary) return torch::stable::new_empty(like, {2, words_for(count)}, ScalarType::Int);
  return torch::stable::new_empty(like, {words_for(count)}, ScalarType::Int);
}

template <typename F>
void by_words(const Tensor& out, int64_t count, const F& body) {
  auto* on = static_cast<uint32_t*>(out.mutable_data_ptr());
  uint32_t* negative = out.dim() == 2 ? on + out.size(1) : nullptr;
  parallel(words_for(count), kWord, [&](int64_t first, int64_t last) { body(on, negative, first, last); });
}

Tensor pack_mask_cpu(const Tensor& mask, bool ternary) {
  ScalarType dtype = mask.scalar_type();
  const bool bytes = dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char;
  // Signs and zeros survive the conversion of any other dtype to float.
  if (!bytes && dtype != ScalarType::Double) dtype = ScalarType::Float;
  const Tensor m = to_dtype(mask, dtype), out = empty_words(mask, mask.numel(), ternary);
  const int64_t count = m.numel();
  const void* from = m.const_data_ptr();
  by_words(out, count, [&](uint32_t* on, uint32_t* negative, int64_t first, int64_t last) {
    if (dtype == ScalarType::Float) return run_pack(static_cast<const float*>(from), on, negative, first, last, count);
    if (dtype == ScalarType::Double)
      return run_pack(static_cast<const double*>(from), on, negative, first, last, count);
    if (dtype == ScalarType::Char) return run_pack(static_cast<const int8_t*>(from), on, negative, first, last, count);
    run_pack(static_cast<const uint8_t*>(from), on, negative, first, last, count);
  });
  return out;
}

Tensor pack_scores_cpu(const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels,
                       double threshold, bool inclusive) {
  const Levels how = parse_levels(levels, inclusive);
  MASKCL_CHECK(how != Levels::soft, "pack_scores: levels is 'soft', which has no bits");
  if (how == Levels::topk) {
    MASKCL_CHECK(kth.has_value(), "levels: 'topk' needs kth");
    threshold = *static_cast<const double*>(to_dtype(*kth, ScalarType::Double).const_data_ptr());
  }
  const Tensor s = torch::stable::contiguous(scores);
  const Tensor out = empty_words(s, s.numel(), how == Levels::ternary || how == Levels::ternary_symmetric);
  dispatch_float(s.scalar_type(), "pack_scores", [&]<typename S>() {
    const S* from = static_cast<const S*>(s.const_data_ptr());
    by_words(out, s.numel(), [&](uint32_t* on, uint32_t* negative, int64_t first, int64_t last) {
      run_pack_scores(from, on, negative, first, last, s.numel(), how, static_cast<compute_t<S>>(threshold));
    });
  });
  return out;
}

template <typename T>
void unpack(const Tensor& words, const Tensor& out, T one, T minus_one) {
  const Planes planes = planes_of(words);
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t count = out.numel();
  parallel(words_for(count), kWord, [&](int64_t first, int64_t last) {
    run_unpack(planes, to, first * kWord, std::min(last * kWord, count), one, minus_one);
  });
}

Tensor unpack_mask_cpu(const Tensor& words_in, std::vector<int64_t> shape, ScalarType dtype) {
  const Tensor words = torch::stable::contiguous(words_in);
  // As wide as the dtype where it is a float or a byte; others are made as float and converted.
  const bool bytes = dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char;
  const bool floating = dtype == ScalarType::Float || dtype == ScalarType::Double ||
                        dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  const ScalarType made = bytes || floating ? dtype : ScalarType::Float;
  const Tensor out = torch::stable::new_empty(words, shape, made);
  expect_large_writes(out);
  if (bytes) {
    unpack<uint8_t>(words, out, 1, 0xff);
  } else {
    dispatch_float(made, "unpack_mask", [&]<typename T>() {
      using U = typename BitsOf<sizeof(T)>::type;
      const T one = static_cast<T>(1.0f), minus_one = static_cast<T>(-1.0f);
      U on, negative;
      memcpy(&on, &one, sizeof on);
      memcpy(&negative, &minus_one, sizeof negative);
      unpack<U>(words, out, on, negative);
    });
  }
  return made == dtype ? out : torch::stable::to(out, dtype);
}

Tensor combine_words_cpu(const Tensor& a_in, const Tensor& b_in, const std::string& how) {
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  MASKCL_CHECK(how == "and" || how == "or" || how == "xor" || how == "andnot", "how: found '", how,
               "', wanted and, or, xor or andnot");
  const Combine kind = how == "and"  ? Combine::both
                       : how == "or" ? Combine::either
                                     : (how == "xor" ? Combine::differ : Combine::without);
  const Tensor out = torch::stable::empty_like(a);
  const auto* left = static_cast<const uint32_t*>(a.const_data_ptr());
  const auto* right = static_cast<const uint32_t*>(b.const_data_ptr());
  auto* to = static_cast<uint32_t*>(out.mutable_data_ptr());
  parallel(a.numel(), 1, [&](int64_t begin, int64_t end) {
    run_combine(left + begin, right + begin, to + begin, end - begin, kind);
  });
  return out;
}

Tensor popcount_words_cpu(const Tensor& words_in) {
  const Tensor words = torch::stable::contiguous(words_in);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d + 1 < words.dim(); ++d) shape.push_back(words.size(d));
  const Tensor out = torch::stable::new_empty(words, shape, ScalarType::Long);
  const int64_t width = words.size(words.dim() - 1), rows = out.numel();
  constexpr int64_t kPiece = 1 << 16;  // words: a long row is for several threads
  const int64_t pieces = std::max<int64_t>(1, (width + kPiece - 1) / kPiece);
  std::vector<int64_t> sums(rows * pieces, 0);
  const auto* from = static_cast<const uint32_t*>(words.const_data_ptr());
  parallel(rows * pieces, std::min(width, kPiece), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = (p % pieces) * kPiece;
      sums[p] = run_popcount(from + (p / pieces) * width + first, std::min(kPiece, width - first));
    }
  });
  auto* to = static_cast<int64_t*>(out.mutable_data_ptr());
  for (int64_t r = 0; r < rows; ++r) {
    to[r] = 0;
    for (int64_t p = 0; p < pieces; ++p) to[r] += sums[r * pieces + p];
  }
  return out;
}

// Weights [first, first + count) of a contiguous weight into `out`.
template <typename U>
void select_part(const void* weight, Planes planes, void* out, int64_t first, int64_t count, int64_t total) {
  const U* w = static_cast<const U*>(weight);
  U* y = static_cast<U*>(out) - first;
  parallel(words_for(count), kWord, [&](int64_t begin, int64_t end) {
    run_select(w, planes, y, first + begin * kWord, std::min(first + count, first + end * kWord), total);
  });
}

}  // namespace

void select_rows(const Tensor& weight, Planes planes, const Tensor& out, int64_t first, int64_t count) {
  dispatch_float(weight.scalar_type(), "packed_weight", [&]<typename T>() {
    using U = typename BitsOf<sizeof(T)>::type;
    select_part<U>(weight.const_data_ptr(), planes, out.mutable_data_ptr(), first, count, weight.numel());
  });
}

namespace {

Tensor packed_weight_cpu(const Tensor& weight, const Tensor& words_in) {
  // Bits are in row-major order, so other orders take a copy.
  const Tensor w = torch::stable::contiguous(weight), words = torch::stable::contiguous(words_in);
  Tensor out = torch::stable::empty_like(weight);
  const Tensor y = out.is_contiguous() ? out : torch::stable::empty_like(w);
  expect_large_writes(y);
  select_rows(w, planes_of(words), y, 0, w.numel());
  if (!out.is_contiguous()) torch::stable::copy_(out, y);
  return out;
}

Tensor packed_embedding_cpu(const Tensor& index_in, const Tensor& weight, const Tensor& words_in) {
  const Tensor index = torch::stable::contiguous(index_in), w = torch::stable::contiguous(weight);
  const Tensor words = torch::stable::contiguous(words_in);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < index.dim(); ++d) shape.push_back(index.size(d));
  const int64_t rows = w.size(0), width = w.size(1);
  shape.push_back(width);
  const auto* at = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i)
    MASKCL_CHECK(at[i] >= 0 && at[i] < rows, "packed_embedding: index holds ", at[i], ", wanted 0 to ", rows - 1);
  const Tensor out = torch::stable::new_empty(w, shape);
  const Planes planes = planes_of(words);
  dispatch_float(w.scalar_type(), "packed_embedding", [&]<typename T>() {
    using U = typename BitsOf<sizeof(T)>::type;
    const U* from = static_cast<const U*>(w.const_data_ptr());
    U* to = static_cast<U*>(out.mutable_data_ptr());
    parallel(index.numel(), width, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = at[i] * width;
        run_select(from, planes, to + i * width - row, row, row + width, w.numel());
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, m) {
  m.impl("pack_mask", TORCH_BOX(&pack_mask_cpu));
  m.impl("pack_scores", TORCH_BOX(&pack_scores_cpu));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask_cpu));
  m.impl("combine_words", TORCH_BOX(&combine_words_cpu));
  m.impl("popcount_words", TORCH_BOX(&popcount_words_cpu));
  m.impl("packed_weight", TORCH_BOX(&packed_weight_cpu));
  m.impl("packed_embedding", TORCH_BOX(&packed_embedding_cpu));
}

}  // namespace maskcl
