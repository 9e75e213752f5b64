// Convolution on the host, 1-d to 3-d: columns of the input times the weights.
#pragma once

#include <memory>

#include "memory/tensor.h"

namespace etcuda {

struct IntList {
  const int64_t* data;
  int64_t size;
};

// Brought to three spatial dimensions; the missing leading ones have size 1.
struct ConvolutionOptions {
  int64_t spatial_rank = 0;
  int64_t stride[3] = {1, 1, 1};
  int64_t padding[3] = {0, 0, 0};
  int64_t dilation[3] = {1, 1, 1};
  int64_t output_padding[3] = {0, 0, 0};
  bool transposed = false;
  int64_t groups = 1;
};

// A list of one element stands for all dimensions. Throws Failure(InvalidArgument).
ConvolutionOptions convolution_options(const Tensor& input, IntList stride, IntList padding, IntList dilation,
                                       bool transposed, IntList output_padding, int64_t groups);

// input [N, C_in, spatial], weight [C_out, C_in/groups, kernel] ([C_in, C_out/groups, kernel] if transposed),
// bias [C_out] or null. The result is channels-last if input or weight is, as torch's is. Throws Failure.
std::unique_ptr<Tensor> host_convolution(const Tensor& input, const Tensor& weight, const Tensor* bias,
                                         const ConvolutionOptions& options);

}  // namespace etcuda
