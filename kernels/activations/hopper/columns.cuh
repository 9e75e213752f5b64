// The activations that are reordered: columns of x, or of activation(gate) * up, which is computed here. The
// host defines K, X_DTYPE, GATE and UP_OFFSET.

#pragma once

#include "ptx.cuh"

#include "gates.cuh"

namespace {

typedef Number<X_DTYPE>::Bits Bits;

// Four neighbouring columns of a row, as they lie in memory.
constexpr int kWords = sizeof(Bits);
struct FourColumns {
  u32 words[kWords];

  __device__ __forceinline__ void load(const Bits* from) {
    if (kWords == 2) {
      const uint2 two = *(const uint2*)from;
      words[0] = two.x, words[1] = two.y;
    } else {
      const uint4 four = *(const uint4*)from;
      words[0] = four.x, words[1] = four.y, words[kWords - 2] = four.z, words[kWords - 1] = four.w;
    }
  }
  __device__ __forceinline__ float operator[](int i) const {
    if (kWords == 4) return __uint_as_float(words[i]);
    return Number<X_DTYPE>::load((Bits)(words[i / 2] >> (i % 2 * 16)));
  }
  // Columns i and i + 1, rounded to X_DTYPE; i is even.
  __device__ __forceinline__ void set_pair(int i, float low, float high) {
    if (kWords == 4)
      words[i] = __float_as_uint(low), words[(i + 1) % kWords] = __float_as_uint(high);
    else
      words[i / 2] = X_DTYPE == BFLOAT16 ? pack_bf16x2(low, high) : pack_f16x2(low, high);
  }
};

// SourceRow is a row of the input. A thread first loads from it whatever it needs for all of its columns, so
// that the loads are in flight together, and computes their values afterwards.

#if GATE

constexpr int kSources = 2;
struct SourceRow {
  const Bits *gate, *up;

  __device__ __forceinline__ SourceRow(const Bits* gate, const Bits* up, u64 gate_stride, u64 up_stride,
                                       int row)
      : gate(gate + row * gate_stride), up(up + UP_OFFSET + row * up_stride) {}
  __device__ __forceinline__ void load(int column, FourColumns (&loaded)[kSources]) const {
    loaded[0].load(gate + column);
    loaded[1].load(up + column);
  }
  static __device__ __forceinline__ FourColumns value(const FourColumns (&loaded)[kSources]) {
    FourColumns result;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      result.set_pair(i, activate<GATE>(loaded[0][i]), activate<GATE>(loaded[0][i + 1]));
      result.set_pair(i, result[i] * loaded[1][i], result[i + 1] * loaded[1][i + 1]);
    }
    return result;
  }
};
#define SOURCE_ARGUMENTS const Bits* __restrict__ gate, const Bits* __restrict__ up
#define STRIDE_ARGUMENTS int gate_stride, int up_stride,
#define SOURCE_ROW(row) SourceRow(gate, up, gate_stride, up_stride, row)

#else

constexpr int kSources = 1;
struct SourceRow {
  const Bits* x;

  __device__ __forceinline__ SourceRow(const Bits* x, int row) : x(x + (u64)row * K) {}
  __device__ __forceinline__ void load(int column, FourColumns (&loaded)[kSources]) const {
    loaded[0].load(x + column);
  }
  static __device__ __forceinline__ FourColumns value(const FourColumns (&loaded)[kSources]) {
    return loaded[0];
  }
};
#define SOURCE_ARGUMENTS const Bits* __restrict__ x
#define STRIDE_ARGUMENTS
#define SOURCE_ROW(row) SourceRow(x, row)

#endif

}  // namespace
