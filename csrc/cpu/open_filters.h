// The products of a 2-d convolution over open channels, on channels_last images: straight from the images, without a
// matrix of patches.
#pragma once

#include "open_tile.h"

namespace maskcl {

constexpr int64_t kPixels = 8 * kRows;  // output pixels that share a panel of the weight
constexpr int64_t kTerms = 128;         // about as many terms between two visits of a weight gradient's stored sums

// [N, H, W, C] in this order of memory.
struct Images {
  const float* data;
  int64_t count, height, width, channels;

  int64_t pixels() const { return count * height * width; }
};

struct Window {
  int64_t height, width, stride[2], padding[2], dilation[2];

  int64_t taps() const { return height * width; }
};

// y = conv(x) or, transposed, dx = conv^T(dz): of each pixel of `out`, the sum over taps and open channels of `in`.
struct Convolution {
  Images in, out;  // out's data are written
  Window window;
  bool transposed;
  const Index* open;       // channels of in
  const float* packed;     // the weight by tile of out's channels: [tiles][taps][open][width]
  const float* bias;       // of out's channels, or null
  const float* zeros;      // a pixel of in that is outside it
  float* result;
};

// Where along one dimension of `in` the tap of an output pixel is; below 0 for nowhere.
MASKCL_INLINE int64_t source(int64_t at, int64_t tap, const Window& w, int d, int64_t size, bool transposed) {
  if (!transposed) {
    const int64_t found = at * w.stride[d] - w.padding[d] + tap * w.dilation[d];
    return found < size ? found : -1;
  }
  const int64_t scaled = at + w.padding[d] - tap * w.dilation[d];
  if (scaled < 0 || scaled % w.stride[d] != 0) return -1;
  return scaled / w.stride[d] < size ? scaled / w.stride[d] : -1;
}

// The pixels of `in` that each tap of output pixels [first, first + kPixels) reads.
MASKCL_INLINE void find_pixels(const Convolution& c, int64_t first, const float** found) {
  for (int64_t i = 0; i < kPixels; ++i) {
    const int64_t p = std::min(first + i, c.out.pixels() - 1);
    const int64_t column = p % c.out.width, row = p / c.out.width % c.out.height, n = p / c.out.width / c.out.height;
    for (int64_t tap = 0; tap < c.window.taps(); ++tap) {
      const int64_t y = source(row, tap / c.window.width, c.window, 0, c.in.height, c.transposed);
      const int64_t x = source(column, tap % c.window.width, c.window, 1, c.in.width, c.transposed);
      const bool outside = y < 0 || x < 0;
      found[tap * kPixels + i] =
          outside ? c.zeros : c.in.data + ((n * c.in.height + y) * c.in.width + x) * c.in.channels;
    }
  }
}

// Blocks [begin, end) of kPixels output pixels.
template <int Bytes>
MASKCL_INLINE void convolve_blocks(const Convolution& c, int64_t begin, int64_t end) {
  constexpr int64_t width = Vector<Bytes>::width;
  const int64_t terms = c.open->size(), taps = c.window.taps(), channels = c.out.channels;
  std::vector<const float*> pixels(taps * kPixels);
  float sums[kRows * width];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kPixels, count = std::min(kPixels, c.out.pixels() - first);
    find_pixels(c, first, pixels.data());
    for (int64_t channel = 0; channel < channels; channel += width) {
      const float* panel = c.packed + channel * taps * terms;
      const int64_t some = std::min(width, channels - channel);
      for (int64_t p = 0; p < count; p += kRows) {
        Sums<Bytes> tile;
        for (int64_t tap = 0; tap < taps; ++tap) {
          Gathered left{{}, c.open->data()};
          bool outside = true;
          for (int r = 0; r < kRows; ++r) {
            left.rows[r] = pixels[tap * kPixels + p + r];
            outside &= left.rows[r] == c.zeros;
          }
          if (outside) continue;
          tile.add(terms, left, panel + tap * terms * width);
        }
        tile.store(sums, width);
        for (int64_t r = 0; r < std::min<int64_t>(kRows, count - p); ++r) {
          float* to = c.result + (first + p + r) * channels + channel;
          for (int64_t j = 0; j < some; ++j) to[j] = sums[r * width + j] + (c.bias ? c.bias[channel + j] : 0.0f);
        }
      }
    }
  }
}

// dW [taps, open C, open O]: the sum over output pixels of dz times the x that the tap reads.
struct FilterGrad {
  Images x, dz;  // x with its padding around it
  Window window;
  const Index* shifts;     // of each pair of a tap and an open channel: how far it is in x from the first tap
  const Index* places;     // of a block: for each pixel of dz, where its first tap is in x
  const float* packed_dz;  // tiles of open channels: [tiles][pixels][width]
  int64_t tiles;
  float* result;  // [tiles][groups][kRows][width]

  int64_t groups() const { return shifts->size() / kRows; }
  // A block of terms is some rows of an image, or some whole images.
  int64_t block_rows() const { return std::min(dz.height, std::max<int64_t>(1, kTerms / dz.width)); }
  int64_t block_images() const { return std::max<int64_t>(1, kTerms / (dz.height * dz.width)); }
};

// For kRows pairs at a time; the last ones may be computed twice.
inline Index shifts_of(const Images& x, const Window& w, const Index& open) {
  Index shifts;
  for (int64_t tap = 0; tap < w.taps(); ++tap)
    for (const int32_t channel : open) {
      const int64_t down = tap / w.width * w.dilation[0], right = tap % w.width * w.dilation[1];
      shifts.push_back(static_cast<int32_t>((down * x.width + right) * x.channels + channel));
    }
  while (shifts.size() % kRows != 0) shifts.push_back(shifts.back());
  return shifts;
}

inline Index places_of(const FilterGrad& f) {
  Index places;
  for (int64_t n = 0; n < f.block_images(); ++n)
    for (int64_t row = 0; row < f.block_rows(); ++row)
      for (int64_t column = 0; column < f.dz.width; ++column)
        places.push_back(static_cast<int32_t>(
            ((n * f.x.height + row * f.window.stride[0]) * f.x.width + column * f.window.stride[1]) * f.x.channels));
  return places;
}

// Items [begin, end): a tile of dz's channels and a group of pairs each.
template <int Bytes>
MASKCL_INLINE void filter_grad_items(const FilterGrad& f, int64_t begin, int64_t end) {
  constexpr int64_t width = Vector<Bytes>::width, size = kRows * width;
  const int64_t rows = f.block_rows(), images = f.block_images(), groups = f.groups();
  const int64_t across = f.x.width * f.x.channels;
  for (int64_t first = 0; first < f.dz.count * f.dz.height; first += images * rows) {
    const int64_t image = first / f.dz.height, row = first % f.dz.height;
    const int64_t here = images > 1 ? std::min(images, f.dz.count - image) * rows : std::min(rows, f.dz.height - row);
    const float* x = f.x.data + (image * f.x.height + row * f.window.stride[0]) * across;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item % groups, tile_of_dz = item / groups;
      Gathered left{{}, f.places->data()};
      for (int r = 0; r < kRows; ++r) left.rows[r] = x + (*f.shifts)[group * kRows + r];
      const float* dz = f.packed_dz + (tile_of_dz * f.dz.count * f.dz.height + first) * f.dz.width * width;
      Sums<Bytes> tile;
      if (first > 0) tile.load(f.result + item * size, width);
      tile.add(here * f.dz.width, left, dz);
      tile.store(f.result + item * size, width);
    }
    if (images == 1) first += here - rows;  // an image's last rows may be fewer
  }
}

}  // namespace maskcl
