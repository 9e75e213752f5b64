// int4 as weights in float16 or bfloat16.

#pragma once

#include "warpgroup_layout.cuh"

namespace {

// What turns the integers of a block of 32 of one row into weights, all in pairs. Weights come multiplied by
// kFactor.
template <int Type>
struct Block;

// Subtractions are exact, as in MARLIN (Frantar et al., 2024).
template <>
struct Block<FLOAT16> {
  static constexpr float kFactor = 16.f;  // so that small ones stay normal numbers
  u32 times, shifted, plus;

  __device__ __forceinline__ Block(u32 scale, u32 zero) {
    const u32 factor = 0x4c004c00u;
    times = mul2(twice(scale), factor);
    if (OFFSET == MINIMUM) {
      shifted = plus = mul2(twice(zero), factor);
    } else if (OFFSET == ZERO_POINT) {
      shifted = twice(zero | 0x6400u);    // 1024 + zero
      plus = sub2(0x63806380u, shifted);  // 960 - that: -(64 + zero)
    } else {
      shifted = 0x64086408u;
      plus = 0xd480d480u;
    }
  }

  // Eight int4 of a word: the low halves of bytes 0 and 2, of 1 and 3, and the high halves likewise.
  __device__ __forceinline__ void weights(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                          u32& high_odd) const {
    const u32 other = word >> 8;
    u32 a = in_1024(word, 0x000f000fu), b = in_1024(other, 0x000f000fu);
    u32 c = in_1024(word, 0x00f000f0u), d = in_1024(other, 0x00f000f0u);
    const u32 sixteenth = 0x2c002c00u;
    if (OFFSET == MINIMUM) {
      low_even = fma2(sub2(a, 0x64006400u), times, plus);
      low_odd = fma2(sub2(b, 0x64006400u), times, plus);
      high_even = fma2(fma2(c, sixteenth, 0xd400d400u), times, plus);
      high_odd = fma2(fma2(d, sixteenth, 0xd400d400u), times, plus);
    } else {
      low_even = mul2(sub2(a, shifted), times);
      low_odd = mul2(sub2(b, shifted), times);
      high_even = mul2(fma2(c, sixteenth, plus), times);
      high_odd = mul2(fma2(d, sixteenth, plus), times);
    }
  }

 private:
  // 1024 plus the bits that the mask leaves.
  static __device__ __forceinline__ u32 in_1024(u32 word, u32 mask) {
    return masked_or<0x64006400u>(word, mask);
  }
};

// The same for blocks of two rows.
template <int Type>
struct Blocks {
  static constexpr float kFactor = Block<Type>::kFactor;
  Block<Type> upper, lower;

  __device__ __forceinline__ Blocks(u32 upper_scale, u32 lower_scale, u32 upper_zero, u32 lower_zero)
      : upper(upper_scale, upper_zero), lower(lower_scale, lower_zero) {}
  template <int Row>
  __device__ __forceinline__ void weights(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                          u32& high_odd) const {
    (Row == 0 ? upper : lower).weights(word, low_even, low_odd, high_even, high_odd);
  }
};

// Integers to 255 as they are stand for so many times 2^-133, the least of bfloat16: one instruction makes a
// pair of weights of them. Scale, offset and weight are rounded. What both rows need is made in pairs.
template <>
struct Blocks<BFLOAT16> {
  static constexpr float kFactor =
      1.f / (1 << 22);  // 2^-133 times the greatest factor that leaves scales finite
  u32 times, sixteenth, plus;

  __device__ __forceinline__ Blocks(u32 upper_scale, u32 lower_scale, u32 upper_zero, u32 lower_zero) {
    const u32 scales = wide_pair(number(upper_scale), number(lower_scale));
    times = wide_mul2(scales, 0x77007700u);  // 2^111
    sixteenth = wide_mul2(scales, 0x75007500u);
    if (OFFSET == MINIMUM)
      plus = wide_pair(number(upper_zero) * kFactor, number(lower_zero) * kFactor);
    else
      plus = wide_mul2(OFFSET == ZERO_POINT ? lower_zero << 16 | upper_zero : 0x00080008u,
                       wide_negative2(times));
  }

  template <int Row>
  __device__ __forceinline__ void weights(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                          u32& high_odd) const {
    const u32 other = word >> 8, t = one_twice<Row>(times), s = one_twice<Row>(sixteenth),
              p = one_twice<Row>(plus);
    low_even = wide_fma2(word & 0x000f000fu, t, p);
    low_odd = wide_fma2(other & 0x000f000fu, t, p);
    high_even = wide_fma2(word & 0x00f000f0u, s, p);
    high_odd = wide_fma2(other & 0x00f000f0u, s, p);
  }

 private:
  static __device__ __forceinline__ float number(u32 half) { return Number<FLOAT16>::load((u16)half); }
};

}  // namespace
