// The words of a weight mask, as the kernels of every device have them: bit i % 32 of word i // 32 is weight i in
// row-major order.
#pragma once

#include "checks.h"

namespace maskcl {

constexpr int64_t kWord = 32;

inline int64_t words_for(int64_t count) { return ceil_div(count, kWord); }

// The planes of a mask; negative is null for a binary one.
struct Planes {
  const uint32_t* on;
  const uint32_t* negative;
};

// Fresh words for `count` weights, and where their planes are.
struct FreshWords {
  Tensor tensor;
  uint32_t *on, *negative;

  FreshWords(const Tensor& like, int64_t count, bool ternary) {
    const int64_t words = words_for(count);
    tensor = ternary ? fresh(like, {2, words}, ScalarType::Int)
                     : fresh(like, {words}, ScalarType::Int);
    on = data<uint32_t>(tensor);
    negative = ternary ? on + words : nullptr;
  }
};

enum class Combine { both, either, differ, first_only };

inline Combine parse_combine(const std::string& name) {
  if (name == "and") return Combine::both;
  if (name == "or") return Combine::either;
  if (name == "xor") return Combine::differ;
  MASKCL_CHECK(name == "andnot", "how: found '", name, "', wanted and, or, xor or andnot");
  return Combine::first_only;
}

}  // namespace maskcl
