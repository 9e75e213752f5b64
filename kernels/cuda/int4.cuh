// Weights in float16 or bfloat16 from int4: what a thread needs of a block of 32 columns, and the conversion.
//
// A word holds eight int4. dequantize() makes four pairs of weights of it: of the low halves of bytes 0 and
// 2, and of 1 and 3, and of the high halves likewise. Weights come out multiplied by kFactor. The host
// defines OFFSET. The source includes ptx.cuh in front: there are two of it.

#pragma once

#define SYMMETRIC 0
#define ZERO_POINT 1
#define MINIMUM 2

namespace {

// A block of one row.
template <int Dtype>
struct RowDequantizer;

// By bits of float16: 0x6400 | q is 1024 + q, and subtractions are exact, as in MARLIN (Frantar et al.,
// 2024).
template <>
struct RowDequantizer<FLOAT16> {
  static constexpr float kFactor = 16.f;  // so that small weights stay normal numbers
  u32 multiplier, shifted_zero, addend;

  __device__ __forceinline__ RowDequantizer(u32 scale, u32 zero) {
    const u32 factor = 0x4c004c00u;  // 16
    multiplier = mul_f16x2(splat_u16(scale), factor);
    if (OFFSET == MINIMUM) {
      shifted_zero = addend = mul_f16x2(splat_u16(zero), factor);
    } else if (OFFSET == ZERO_POINT) {
      shifted_zero = splat_u16(zero | 0x6400u);       // 1024 + zero
      addend = sub_f16x2(0x63806380u, shifted_zero);  // 960 - that: -(64 + zero)
    } else {
      shifted_zero = 0x64086408u;  // 1024 + 8
      addend = 0xd480d480u;        // -(64 + 8)
    }
  }

  __device__ __forceinline__ void dequantize(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                             u32& high_odd) const {
    const u32 other = word >> 8;
    u32 a = plus_1024(word, 0x000f000fu), b = plus_1024(other, 0x000f000fu);
    u32 c = plus_1024(word, 0x00f000f0u), d = plus_1024(other, 0x00f000f0u);
    const u32 sixteenth = 0x2c002c00u;
    if (OFFSET == MINIMUM) {
      low_even = fma_f16x2(sub_f16x2(a, 0x64006400u), multiplier, addend);
      low_odd = fma_f16x2(sub_f16x2(b, 0x64006400u), multiplier, addend);
      high_even = fma_f16x2(fma_f16x2(c, sixteenth, 0xd400d400u), multiplier, addend);
      high_odd = fma_f16x2(fma_f16x2(d, sixteenth, 0xd400d400u), multiplier, addend);
    } else {
      low_even = mul_f16x2(sub_f16x2(a, shifted_zero), multiplier);
      low_odd = mul_f16x2(sub_f16x2(b, shifted_zero), multiplier);
      high_even = mul_f16x2(fma_f16x2(c, sixteenth, addend), multiplier);
      high_odd = mul_f16x2(fma_f16x2(d, sixteenth, addend), multiplier);
    }
  }

 private:
  // 1024 plus the bits that the mask leaves.
  static __device__ __forceinline__ u32 plus_1024(u32 word, u32 mask) {
    return and_or<0x64006400u>(word, mask);
  }
};

// Blocks of a thread's two rows.
template <int Dtype>
struct Dequantizer {
  static constexpr float kFactor = RowDequantizer<Dtype>::kFactor;
  RowDequantizer<Dtype> upper, lower;

  __device__ __forceinline__ Dequantizer(u32 upper_scale, u32 lower_scale, u32 upper_zero, u32 lower_zero)
      : upper(upper_scale, upper_zero), lower(lower_scale, lower_zero) {}
  template <int Row>
  __device__ __forceinline__ void dequantize(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                             u32& high_odd) const {
    (Row == 0 ? upper : lower).dequantize(word, low_even, low_odd, high_even, high_odd);
  }
};

// Integers up to 255, read as numbers, are multiples of a type's smallest subnormal: one multiply-add makes a
// pair of weights of them. What two rows need is computed in pairs.
template <u32 (*Fma)(u32, u32, u32)>
struct SubnormalDequantizer {
  u32 multiplier, multiplier_16th, addend;

  template <int Row>
  __device__ __forceinline__ void dequantize(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                             u32& high_odd) const {
    const u32 other = word >> 8, multiply = splat_half<Row>(multiplier),
              multiply_16th = splat_half<Row>(multiplier_16th), add = splat_half<Row>(addend);
    low_even = Fma(word & 0x000f000fu, multiply, add);
    low_odd = Fma(other & 0x000f000fu, multiply, add);
    high_even = Fma(word & 0x00f000f0u, multiply_16th, add);
    high_odd = Fma(other & 0x00f000f0u, multiply_16th, add);
  }
};

// The smallest subnormal of bfloat16 is 2^-133. Scale, offset and weight are rounded to bfloat16.
template <>
struct Dequantizer<BFLOAT16> : SubnormalDequantizer<fma_bf16x2> {
  static constexpr float kFactor =
      1.f / (1 << 22);  // 2^-133 times the largest power of two that leaves scales finite

  __device__ __forceinline__ Dequantizer(u32 upper_scale, u32 lower_scale, u32 upper_zero, u32 lower_zero) {
    const u32 scales = pack_bf16x2(half_to_float(upper_scale), half_to_float(lower_scale));
    multiplier = mul_bf16x2(scales, 0x77007700u);       // 2^111
    multiplier_16th = mul_bf16x2(scales, 0x75007500u);  // 2^107
    if (OFFSET == MINIMUM)
      addend = pack_bf16x2(half_to_float(upper_zero) * kFactor, half_to_float(lower_zero) * kFactor);
    else
      addend = mul_bf16x2(OFFSET == ZERO_POINT ? lower_zero << 16 | upper_zero : 0x00080008u,
                          neg_bf16x2(multiplier));
  }

 private:
  static __device__ __forceinline__ float half_to_float(u32 half) { return Number<FLOAT16>::load((u16)half); }
};

}  // namespace
