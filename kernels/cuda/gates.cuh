// Activation functions of gates. The source includes ptx.cuh in front: there are two of it.

#pragma once

#define SILU 1
#define GELU_TANH 2
#define GELU_ERF 3

namespace {

// The formulas of kernels/activations/README.md.
template <int Gate>
__device__ __forceinline__ float activate(float g) {
  if (Gate == GELU_ERF) return 0.5f * g * (1.f + erff(g * 0.7071067811865476f));
  // exp(-g), or exp(-2 u), as powers of two: the constants contain log2(e).
  const float power =
      Gate == SILU ? g * -1.4426950408889634f : g * (-2.302208198144325f + -0.10294324f * g * g);
  return g * rcp_approx(1.f + exp2_approx(power));
}

}  // namespace
