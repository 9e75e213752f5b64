// Convolutions on the GPU through cuDNN, on this thread's current stream. Programs hold a kernel of their own
// for each, which runs where cuDNN does not.
#pragma once

#include <array>

#include "memory/tensor.h"

namespace etcuda {

struct ConvolutionNumbers {
  std::array<int64_t, 2> stride{1, 1};
  std::array<int64_t, 2> padding{0, 0};
  std::array<int64_t, 2> dilation{1, 1};
  int64_t groups = 1;
  bool relu = false;
};

// out = relu?(conv(x, weight) + bias? + residual?), asynchronous. False, and nothing is launched, where there
// is no cuDNN or it has no engine: the caller then computes it.
//
// `x` [N, C, H, W], `out` and `residual` [N, O, OH, OW], dense with channels last; `weight` [O, KH, KW, C /
// groups] and `bias` [O], contiguous; all of one dtype. `bias` and `residual` may be null. Throws Failure.
bool cudnn_convolution(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor* residual,
                       const Tensor& out, const ConvolutionNumbers& numbers);

}  // namespace etcuda
