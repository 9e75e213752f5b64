// Columns of activations that are put in order: of x, or of activation(gate) * up, which is computed here.
// Defined from outside: X, GATE, UP_OFFSET.

#pragma once

#include "ptx.cuh"

#define SILU 1
#define GELU_TANH 2
#define GELU_ERF 3

namespace {

typedef Number<X>::Bits Bits;
constexpr int kWords = sizeof(Bits);  // of four columns, in which they come

// Four columns.
struct Four {
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
    return Number<X>::load((Bits)(words[i / 2] >> (i % 2 * 16)));
  }
  // Rounded; two columns from i on.
  __device__ __forceinline__ void put_two(int i, float low, float high) {
    if (kWords == 4)
      words[i] = __float_as_uint(low), words[(i + 1) % kWords] = __float_as_uint(high);
    else
      words[i / 2] = X == BFLOAT16 ? wide_pair(low, high) : pair_of(low, high);
  }
};

#if GATE

// As ../rounding/README.md has them.
__device__ __forceinline__ float activate(float g) {
  if (GATE == GELU_ERF) return 0.5f * g * (1.f + erff(g * 0.7071067811865476f));
  // exp(-g), or that of 2 u, with -log2(e) multiplied in.
  const float power =
      GATE == SILU ? g * -1.4426950408889634f : g * (-2.302208198144325f + -0.10294324f * g * g);
  return g * reciprocal(1.f + exp2_of(power));
}

struct Rows {
  const Bits *gate, *up;

  __device__ __forceinline__ Rows(const Bits* gate, const Bits* up, u64 gate_stride, u64 up_stride, int row)
      : gate(gate + row * gate_stride), up(up + UP_OFFSET + row * up_stride) {}
  __device__ __forceinline__ void start(int column, Four (&four)[2]) const {
    four[0].load(gate + column);
    four[1].load(up + column);
  }
  static __device__ __forceinline__ Four finish(const Four (&four)[2]) {
    Four result;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      result.put_two(i, activate(four[0][i]), activate(four[0][i + 1]));
      result.put_two(i, result[i] * four[1][i], result[i + 1] * four[1][i + 1]);
    }
    return result;
  }
};
constexpr int kSources = 2;
#define SOURCES const Bits* __restrict__ gate, const Bits* __restrict__ up
#define STRIDES int gate_stride, int up_stride,
#define ROWS(row) Rows(gate, up, gate_stride, up_stride, row)

#else

struct Rows {
  const Bits* x;

  __device__ __forceinline__ Rows(const Bits* x, int row) : x(x + (u64)row * K) {}
  __device__ __forceinline__ void start(int column, Four (&four)[1]) const { four[0].load(x + column); }
  static __device__ __forceinline__ Four finish(const Four (&four)[1]) { return four[0]; }
};
constexpr int kSources = 1;
#define SOURCES const Bits* __restrict__ x
#define STRIDES
#define ROWS(row) Rows(x, row)

#endif

}  // namespace
