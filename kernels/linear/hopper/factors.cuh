// Powers of two that keep sums in float16 in range, and the way back to float32.
//
// Of a row of the weight: its scales are multiplied by 2^e while sums are in float16 (RowFactors). Of a
// token: the kernel in reorder.cu has divided its activations, in each k segment, by a power of two
// (TokenFactors).

#pragma once

#include "smem.cuh"

namespace {

// 2^e for each of a thread's two rows. With it weights, times 2^(e - 24), and their sums are neither too
// large nor too small for float16: the largest scale of a row becomes 2^12 to 2^16. A warp looks for it as
// scales are loaded; where a larger one comes, it lowers e, and multiplies the sums so far accordingly.
struct RowFactors {
  u32 limit = 0;                         // magnitudes of scales above which e has to be lowered; at first all
  u32 multiplier = 0, multiplier_2 = 0;  // 2^e as two factors, for it may be too large for float16

  // `sizes` are the largest magnitudes of the scales that the lane has loaded for the step. Three other lanes
  // have more of the same rows.
  __device__ __forceinline__ void update(u32 sizes, u32 (&sums)[BLOCK_M / 4]) {
    if (__any_sync(0xffffffff, max_u16x2(sizes, limit) != limit)) lower(sizes, sums);
  }
  __device__ __forceinline__ void update(u32, float (&)[BLOCK_M / 2]) {}  // float32 needs none

  // What the sums of a row have to be multiplied by at the end.
  template <int Row>
  __device__ __forceinline__ float inverse() const {
    return __int_as_float((127 + 24 - exponent_for(limit >> 16 * Row & 0xffff)) << 23);
  }

 private:
  __device__ __forceinline__ void lower(u32 sizes, u32 (&sums)[BLOCK_M / 4]) {
    sizes = max_u16x2(sizes, __shfl_xor_sync(0xffffffff, sizes, 1));
    sizes = max_u16x2(sizes, __shfl_xor_sync(0xffffffff, sizes, 2));
    const u32 old_limits = limit;
    u32 down = 0;
    limit = multiplier = multiplier_2 = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 size = sizes >> 16 * i & 0xffff, old_limit = old_limits >> 16 * i & 0xffff;
      const u32 new_limit = size > old_limit ? min((min(size >> 10, 28u) + 4 << 10) - 1, 0x7fffu) : old_limit;
      const int e = exponent_for(new_limit), by = min(exponent_for(old_limit) - e, 31);
      limit |= new_limit << 16 * i;
      multiplier |= (u32)(15 + min(e, 15)) << (10 + 16 * i);
      multiplier_2 |= (u32)(15 + max(e - 15, 0)) << (10 + 16 * i);
      down |= (by > 14 ? 0u : (u32)(15 - by) << 10) << 16 * i;
    }
#pragma unroll
    for (int j = 0; j < BLOCK_M / 4; j += 2) {
      sums[j] = mul_f16x2(sums[j], splat_half<0>(down));
      sums[j + 1] = mul_f16x2(sums[j + 1], splat_half<1>(down));
    }
  }
  static __device__ __forceinline__ int exponent_for(u32 limit) {
    return min(31 - (int)(limit + 1 >> 10), 27);
  }
};

// The powers of two that the tokens of a tile were divided by in a k segment.
struct TokenFactors {
  u32 smem;           // address of the warp's copy, if kFactorBytes is not 0
  const float* gmem;  // of the tile's first token
  int tokens;         // from there to the last one

  __device__ __forceinline__ float load_gmem(int m) const { return m < tokens ? gmem[m] : 0.f; }
  __device__ __forceinline__ void copy_to_smem() const {
    if (kFactorBytes == 0) return;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < BLOCK_M; i += 32) {
      const int m = i + threadIdx.x % 32;
      if (m < BLOCK_M) st_shared_u32(smem + m * 4, __float_as_uint(load_gmem(m)));
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_pair(float& low, float& high, int m) const {
    if (kFactorBytes == 0) {
      low = load_gmem(m), high = load_gmem(m + 1);
    } else {
      u32 pair[2];
      ld_shared_v2(pair, smem + m * 4);
      low = __uint_as_float(pair[0]), high = __uint_as_float(pair[1]);
    }
  }
};

// A thread's accumulators as float32, without the powers of two. Sum 4 j + 2 r + c is of row r (r = 0, 1) of
// the thread's two, and of token 8 j + 2 (lane % 4) + c.
__device__ __forceinline__ void to_float(const float (&accumulators)[BLOCK_M / 2], const RowFactors&,
                                         const TokenFactors&, float (&sums)[BLOCK_M / 2]) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j++) sums[j] = accumulators[j];
}
__device__ __forceinline__ void to_float(const u32 (&accumulators)[BLOCK_M / 4],
                                         const RowFactors& row_factors, const TokenFactors& token_factors,
                                         float (&sums)[BLOCK_M / 2]) {
  const float inverse[2] = {row_factors.inverse<0>(), row_factors.inverse<1>()};
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    float low, high;
    token_factors.load_pair(low, high, j * 8 + threadIdx.x % 4 * 2);
#pragma unroll
    for (int row = 0; row < 2; row++) {
      sums[4 * j + 2 * row] = unpack_f16<0>(accumulators[2 * j + row]) * inverse[row] * low;
      sums[4 * j + 2 * row + 1] = unpack_f16<1>(accumulators[2 * j + row]) * inverse[row] * high;
    }
  }
}

}  // namespace
