// What a warp's lanes get from a call that all of them have made.
#include <cmath>

#include "block.h"

namespace emulator {
namespace {

float from_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, digits = bits & 1023;
  float value = std::ldexp(1.0f + digits / 1024.0f, exponent - 15);
  if (exponent == 0) value = std::ldexp(static_cast<float>(digits), -24);
  if (exponent == 31) value = digits ? NAN : INFINITY;
  return bits >> 15 ? -value : value;
}

float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof(value));
  return value;
}

// d += a b for a [16, 16], b [16, 8], d [16, 8]. Which lane holds what: PTX's "Matrix Fragments for mma.m16n8k16 with
// floating point type". Sums are in float64, rounded once: hardware promises no order of its own.
void multiply_matrices(Lane* const (&lanes)[kWarp], float (*number)(uint16_t)) {
  float a[16][16], b[16][8];
  const auto half = [&](uint32_t pair, int which) { return number(static_cast<uint16_t>(pair >> 16 * which)); };
  const auto of = [&](int lane) { return reinterpret_cast<Fragments*>(lanes[lane]->value); };
  for (int lane = 0; lane < kWarp; ++lane) {
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 8; ++i)
      a[group + (i / 2 % 2 ? 8 : 0)][pair + i % 2 + (i >= 4 ? 8 : 0)] = half(of(lane)->a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) b[pair + i % 2 + (i >= 2 ? 8 : 0)][group] = half(of(lane)->b[i / 2], i % 2);
  }
  for (int lane = 0; lane < kWarp; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
      double sum = of(lane)->d[i];
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      of(lane)->d[i] = static_cast<float>(sum);
    }
}

}  // namespace

void answer(Call call, Lane* const (&lanes)[kWarp]) {
  if (call == Call::multiply_bf16) return multiply_matrices(lanes, &from_bf16);
  if (call == Call::multiply_f16) return multiply_matrices(lanes, &from_f16);
  uint64_t votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) votes |= (lanes[lane]->value & 1) << lane;
  for (int lane = 0; lane < kWarp; ++lane) {
    const int argument = lanes[lane]->argument, from = call == Call::shuffle_xor ? lane ^ argument : argument;
    lanes[lane]->result = call == Call::ballot ? votes : lanes[from % kWarp]->value;
  }
}

}  // namespace emulator
