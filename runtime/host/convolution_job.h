// One convolution, ready to compute: what the direct and the transposed form share.
#pragma once

#include <array>
#include <memory>

#include "host/convolution.h"
#include "host/gemm.h"

namespace etcuda {

using Triple = std::array<int64_t, 3>;

// A tensor as [batch, channels, depth, height, width].
struct SpatialView {
  char* data;
  int64_t batch_stride;
  int64_t channel_stride;
  Triple sizes{1, 1, 1};
  Triple strides{0, 0, 0};

  explicit SpatialView(const Tensor& tensor)
      : data(tensor.data_as<char>()), batch_stride(tensor.strides[0]), channel_stride(tensor.strides[1]) {
    for (int64_t i = tensor.rank - 1, j = 2; i >= 2; --i, --j) {
      sizes[static_cast<size_t>(j)] = tensor.sizes[static_cast<size_t>(i)];
      strides[static_cast<size_t>(j)] = tensor.strides[static_cast<size_t>(i)];
    }
  }
  int64_t positions() const { return sizes[0] * sizes[1] * sizes[2]; }
  // The one stride from position to position, or -1 if there is none.
  int64_t position_stride() const {
    int64_t step = -1;
    int64_t expected = 0;
    for (size_t i = 3; i-- > 0;) {
      if (sizes[i] == 1) continue;
      if (step < 0) {
        step = strides[i];
      } else if (strides[i] != expected) {
        return -1;
      }
      expected = strides[i] * sizes[i];
    }
    return step < 0 ? 0 : step;
  }
};

struct ConvolutionJob {
  const Tensor& input;
  const Tensor& weight;
  const Tensor* bias;
  const ConvolutionOptions& options;
  Tensor& output;
  Triple kernel;
  int64_t element;
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// The bias of the channels from `first_channel` on as a column, to be added to all positions; empty without a
// bias.
inline MatrixView bias_view(const ConvolutionJob& job, int64_t first_channel) {
  if (job.bias == nullptr) return {};
  return {job.bias->data_as<char>() + first_channel * job.bias->strides[0] * job.element, job.bias->dtype,
          job.bias->strides[0], 0};
}

void convolve(const ConvolutionJob& job);
void convolve_transposed(const ConvolutionJob& job);

}  // namespace etcuda
