// Weight masks of one bit (ternary: two) a weight: packing, set operations, and weights that are read through the bits.

#include <algorithm>
#include <vector>

#include "packing.h"

namespace maskcl {
namespace {

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

MASKCL_CLONES void run_select(const uint16_t* w, Planes p, uint16_t* y, int64_t begin, int64_t end, int64_t count) {
  select_range(w, p, y, begin, end, count);
}
MASKCL_CLONES void run_select(const uint32_t* w, Planes p, uint32_t* y, int64_t begin, int64_t end, int64_t count) {
  select_range(w, p, y, begin, end, count);
}
void run_select(const uint64_t* w, Planes p, uint64_t* y, int64_t begin, int64_t end, int64_t count) {
  select_range(w, p, y, begin, end, count);
}

MASKCL_CLONES int64_t run_popcount(const uint32_t* words, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += __builtin_popcount(words[i]);
  return sum;
}

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
    case Combine::first_only:
      for (int64_t i = 0; i < count; ++i) out[i] = a[i] & ~b[i];
      break;
  }
}

// --- ops ------------------------------------------------------------------------------------------------------------

Tensor pack_mask_cpu(const Tensor& mask, bool ternary) {
  ScalarType dtype = mask.scalar_type();
  const bool bytes = dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char;
  const bool complex = dtype == ScalarType::ComplexHalf || dtype == ScalarType::ComplexFloat ||
                       dtype == ScalarType::ComplexDouble;
  MASKCL_CHECK(!(complex && ternary), "pack_mask: mask is ", torch::headeronly::toString(dtype),
               ", wanted a signed dtype");
  // Signs and zeros survive the conversion of any other real dtype to float; of a complex one neither part may be lost.
  if (complex)
    dtype = ScalarType::Bool;
  else if (!bytes && dtype != ScalarType::Double)
    dtype = ScalarType::Float;
  const Tensor m = to_dtype(mask, dtype);
  const FreshWords words(mask, mask.numel(), ternary);
  const int64_t count = m.numel();
  const void* from = m.const_data_ptr();
  by_words(words, count, [&](uint32_t* on, uint32_t* negative, int64_t first, int64_t last) {
    if (dtype == ScalarType::Float) return run_pack(static_cast<const float*>(from), on, negative, first, last, count);
    if (dtype == ScalarType::Double)
      return run_pack(static_cast<const double*>(from), on, negative, first, last, count);
    if (dtype == ScalarType::Char) return run_pack(static_cast<const int8_t*>(from), on, negative, first, last, count);
    run_pack(static_cast<const uint8_t*>(from), on, negative, first, last, count);
  });
  return words.tensor;
}

Tensor pack_scores_cpu(const Tensor& scores, const std::optional<Tensor>& kth, const std::string& levels,
                       double threshold, bool inclusive) {
  const char* op = "pack_scores";
  const Levels parsed = parse_levels(levels, inclusive);
  MASKCL_CHECK(parsed != Levels::soft, op, ": levels is 'soft', which has no bits");
  threshold = parsed == Levels::topk ? kth_value(op, kth) : threshold_for(scores.scalar_type(), parsed, threshold);
  const Tensor s = torch::stable::contiguous(scores);
  const FreshWords words(s, s.numel(), parsed == Levels::ternary || parsed == Levels::ternary_symmetric);
  dispatch_float(s.scalar_type(), op, [&]<typename S>() {
    const S* from = const_data<S>(s);
    by_words(words, s.numel(), [&](uint32_t* on, uint32_t* negative, int64_t first, int64_t last) {
      run_pack_scores(from, on, negative, first, last, s.numel(), parsed, static_cast<compute_t<S>>(threshold));
    });
  });
  return words.tensor;
}

Tensor unpack_mask_cpu(const Tensor& words_in, std::vector<int64_t> shape, ScalarType dtype) {
  check_unpacked("unpack_mask", words_in, shape, dtype);
  const Tensor words = torch::stable::contiguous(words_in);
  // As wide as the dtype where it is a float or a byte; others are made as float and converted.
  const bool bytes = dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char;
  const bool floating = dtype == ScalarType::Float || dtype == ScalarType::Double ||
                        dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  const ScalarType made = bytes || floating ? dtype : ScalarType::Float;
  const Tensor out = fresh(words, shape, made);
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

Tensor combine_words_cpu(const Tensor& a_in, const Tensor& b_in, const std::string& how_name) {
  const Combine how = parse_combine(how_name);
  check_combinable("combine_words", a_in, b_in);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const Tensor out = fresh_like(a);
  const uint32_t *p = const_data<uint32_t>(a), *q = const_data<uint32_t>(b);
  uint32_t* to = data<uint32_t>(out);
  parallel(a.numel(), 1, [&](int64_t begin, int64_t end) {
    run_combine(p + begin, q + begin, to + begin, end - begin, how);
  });
  return like_input(out, a_in);
}

Tensor popcount_words_cpu(const Tensor& words_in) {
  check_dtype("popcount_words", "words", words_in, ScalarType::Int);
  MASKCL_CHECK(words_in.dim() >= 1, "popcount_words: words is 0-d, wanted at least one dimension");
  const Tensor words = torch::stable::contiguous(words_in);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d + 1 < words.dim(); ++d) shape.push_back(words.size(d));
  const Tensor out = fresh(words, shape, ScalarType::Long);
  const int64_t width = words.size(words.dim() - 1), rows = out.numel();
  constexpr int64_t kPiece = 1 << 16;  // words: a long row is for several threads
  const int64_t pieces = std::max<int64_t>(1, (width + kPiece - 1) / kPiece);
  std::vector<int64_t> sums(rows * pieces, 0);
  const uint32_t* from = const_data<uint32_t>(words);
  parallel(rows * pieces, std::min(width, kPiece), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = (p % pieces) * kPiece;
      sums[p] = run_popcount(from + (p / pieces) * width + first, std::min(kPiece, width - first));
    }
  });
  int64_t* to = data<int64_t>(out);
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

void packed_select_into(const Tensor& weight, Planes planes, void* out, int64_t first, int64_t count) {
  dispatch_float(weight.scalar_type(), "packed_weight", [&]<typename T>() {
    using U = typename BitsOf<sizeof(T)>::type;
    select_part<U>(weight.const_data_ptr(), planes, out, first, count, weight.numel());
  });
}

namespace {

Tensor packed_weight_cpu(const Tensor& weight, const Tensor& words_in) {
  check_words("packed_weight", words_in, weight.numel());
  // Bits are in row-major order, so other orders take a copy.
  const Tensor w = torch::stable::contiguous(weight), words = torch::stable::contiguous(words_in);
  Tensor out = fresh_like(weight);
  const Tensor y = out.is_contiguous() ? out : fresh_like(w);
  expect_large_writes(y);
  packed_select_into(w, planes_of(words), y.mutable_data_ptr(), 0, w.numel());
  if (!out.is_contiguous()) torch::stable::copy_(out, y);
  return out;
}

Tensor packed_embedding_cpu(const Tensor& index_in, const Tensor& weight, const Tensor& words_in) {
  check_embedding("packed_embedding", index_in, weight, words_in);
  const Tensor index = torch::stable::contiguous(index_in), w = torch::stable::contiguous(weight);
  const Tensor words = torch::stable::contiguous(words_in);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < index.dim(); ++d) shape.push_back(index.size(d));
  const int64_t rows = w.size(0), width = w.size(1);
  shape.push_back(width);
  const int64_t* at = const_data<int64_t>(index);
  for (int64_t i = 0; i < index.numel(); ++i)
    MASKCL_CHECK(at[i] >= 0 && at[i] < rows, "packed_embedding: index holds ", at[i], ", wanted 0 to ", rows - 1);
  const Tensor out = fresh(w, shape);
  const Planes planes = planes_of(words);
  dispatch_float(w.scalar_type(), "packed_embedding", [&]<typename T>() {
    using U = typename BitsOf<sizeof(T)>::type;
    const U* from = const_data<U>(w);
    U* to = data<U>(out);
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
