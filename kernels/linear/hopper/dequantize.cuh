// Weights from int4 where sums are in float16 (int4.cuh has the others): they come out multiplied by
// 2^(e - 24), where 2^e is the row's in RowFactors.

#pragma once

#include "factors.cuh"
#include "int4.cuh"

namespace {

// For sums in float16: the smallest subnormal of float16 is 2^-24.
struct F16SumDequantizer : SubnormalDequantizer<fma_f16x2> {
  // Scales and zeros of two rows; `zeros` as they are stored.
  __device__ __forceinline__ F16SumDequantizer(u32 scales, u32 zeros, const RowFactors& row_factors) {
    multiplier = mul_f16x2(mul_f16x2(scales, row_factors.multiplier), row_factors.multiplier_2);
    multiplier_16th = mul_f16x2(multiplier, 0x2c002c00u);
    if (OFFSET == MINIMUM)  // times 2^-24, as two factors of 2^-12
      addend = mul_f16x2(mul_f16x2(zeros, mul_f16x2(row_factors.multiplier, 0x0c000c00u)),
                         mul_f16x2(row_factors.multiplier_2, 0x0c000c00u));
    else
      addend = mul_f16x2(OFFSET == ZERO_POINT ? zeros : 0x00080008u, neg_f16x2(multiplier));
  }
};

// What sums are divided by when they are stored.
constexpr float kWeightFactor = F16_ACCUMULATE ? 1.f : Dequantizer<MMA_DTYPE>::kFactor;

}  // namespace
