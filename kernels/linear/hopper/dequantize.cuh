// int4 as weights in float16 or bfloat16.

#pragma once

#include "smem.cuh"

namespace {

// What turns the integers of a block of 32 of one row into weights, all in pairs. Weights come multiplied by
// kFactor; where sums are in float16, by what RowFactors have.
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

// Integers to 255 as they are stand for so many times the least number of a type: one instruction makes a
// pair of weights of them. What two rows need is made in pairs.
template <u32 (*MultiplyAdd)(u32, u32, u32)>
struct LeastNumbers {
  u32 times, sixteenth, plus;

  template <int Row>
  __device__ __forceinline__ void weights(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                          u32& high_odd) const {
    const u32 other = word >> 8, t = one_twice<Row>(times), s = one_twice<Row>(sixteenth),
              p = one_twice<Row>(plus);
    low_even = MultiplyAdd(word & 0x000f000fu, t, p);
    low_odd = MultiplyAdd(other & 0x000f000fu, t, p);
    high_even = MultiplyAdd(word & 0x00f000f0u, s, p);
    high_odd = MultiplyAdd(other & 0x00f000f0u, s, p);
  }
};

// Of bfloat16, 2^-133. Scale, offset and weight are rounded.
template <>
struct Blocks<BFLOAT16> : LeastNumbers<wide_fma2> {
  static constexpr float kFactor =
      1.f / (1 << 22);  // 2^-133 times the greatest factor that leaves scales finite

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

 private:
  static __device__ __forceinline__ float number(u32 half) { return Number<FLOAT16>::load((u16)half); }
};

// Powers of two 2^e, one for each of two rows, that scales are multiplied by so that weights, times 2^(e -
// 24), and their sums are neither too great nor too small for float16. The greatest scale of a row becomes
// 2^12 to 2^16; it is looked for as scales come. Where a greater one comes, e is lowered, and what was summed
// before with it.
struct RowFactors {
  u32 most = 0;                  // magnitudes of scales, above which e has to be lowered; at first all
  u32 times = 0, times_too = 0;  // 2^e in two factors, as it may be too great for float16

  // `sizes` are the lane's greatest magnitudes of scales that come, of which three beside this one have more.
  __device__ __forceinline__ void admit(u32 sizes, u32 (&sums)[BLOCK_M / 4]) {
    if (__any_sync(0xffffffff, greater_halves(sizes, most) != most)) lower(sizes, sums);
  }
  __device__ __forceinline__ void admit(u32, float (&)[BLOCK_M / 2]) {}  // float32 needs none

  // What sums have to be multiplied by.
  template <int Row>
  __device__ __forceinline__ float back() const {
    return __int_as_float((127 + 24 - exponent_for(most >> 16 * Row & 0xffff)) << 23);
  }

 private:
  __device__ __forceinline__ void lower(u32 sizes, u32 (&sums)[BLOCK_M / 4]) {
    sizes = greater_halves(sizes, __shfl_xor_sync(0xffffffff, sizes, 1));
    sizes = greater_halves(sizes, __shfl_xor_sync(0xffffffff, sizes, 2));
    const u32 before = most;
    u32 down = 0;
    most = times = times_too = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 size = sizes >> 16 * i & 0xffff, old = before >> 16 * i & 0xffff;
      const u32 now = size > old ? min((min(size >> 10, 28u) + 4 << 10) - 1, 0x7fffu) : old;
      const int e = exponent_for(now), by = min(exponent_for(old) - e, 31);
      most |= now << 16 * i;
      times |= (u32)(15 + min(e, 15)) << (10 + 16 * i);
      times_too |= (u32)(15 + max(e - 15, 0)) << (10 + 16 * i);
      down |= (by > 14 ? 0u : (u32)(15 - by) << 10) << 16 * i;
    }
#pragma unroll
    for (int j = 0; j < BLOCK_M / 4; j += 2) {
      sums[j] = mul2(sums[j], one_twice<0>(down));
      sums[j + 1] = mul2(sums[j + 1], one_twice<1>(down));
    }
  }
  static __device__ __forceinline__ int exponent_for(u32 most) { return min(31 - (int)(most + 1 >> 10), 27); }
};

// Of float16, 2^-24: weights for sums in float16.
struct HalfBlocks : LeastNumbers<fma2> {
  // Of two rows each; `zeros` as they are stored.
  __device__ __forceinline__ HalfBlocks(u32 scales, u32 zeros, const RowFactors& factors) {
    times = mul2(mul2(scales, factors.times), factors.times_too);
    sixteenth = mul2(times, 0x2c002c00u);
    if (OFFSET == MINIMUM)  // times 2^-24, in two factors too
      plus = mul2(mul2(zeros, mul2(factors.times, 0x0c000c00u)), mul2(factors.times_too, 0x0c000c00u));
    else
      plus = mul2(OFFSET == ZERO_POINT ? zeros : 0x00080008u, negative2(times));
  }
};

// What sums are divided by when they are stored.
constexpr float kWeightFactor = HALF_SUMS ? 1.f : Blocks<TYPE>::kFactor;

}  // namespace
