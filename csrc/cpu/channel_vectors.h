// The mask and bias of channels, as the loops of masked activations read them: by column of a row.
#pragma once

#include <algorithm>

#include "parallel.h"

namespace maskcl {

constexpr int64_t kShortInner = 32;  // below it inner is folded into the row

// Mask, bias and 1 / mask a column: as given, or each repeated `repeat` times.
template <typename C>
struct Columns {
  std::vector<C> mask, bias, inverse_m;

  Columns(const char* op, const Tensor& mask_in, const std::optional<Tensor>& bias_in, const Layout& layout,
          int64_t repeat, bool inverse) {
    check_channels(op, "mask", mask_in, layout.channels);
    if (bias_in) check_channels(op, "bias", *bias_in, layout.channels);
    const ScalarType dtype = sizeof(C) == 8 ? ScalarType::Double : ScalarType::Float;
    const Tensor m = to_dtype(mask_in, dtype);
    const C* from = const_data<C>(m);
    mask.resize(layout.channels * repeat);
    bias.assign(layout.channels * repeat, C(0));
    for (int64_t c = 0; c < layout.channels; ++c) std::fill_n(mask.data() + c * repeat, repeat, from[c]);
    if (bias_in) {
      const Tensor b = to_dtype(*bias_in, dtype);
      const C* added = const_data<C>(b);
      for (int64_t c = 0; c < layout.channels; ++c) std::fill_n(bias.data() + c * repeat, repeat, added[c]);
    }
    if (inverse) {
      inverse_m.resize(mask.size());
      for (size_t i = 0; i < mask.size(); ++i) inverse_m[i] = inverse_mask(mask[i]);
    }
  }
};

// How many neighbours of a channel are folded into a row.
inline int64_t folded(const Layout& layout) {
  return layout.inner > 0 && layout.inner < kShortInner ? layout.inner : 1;
}

}  // namespace maskcl
