#include <algorithm>

#include "host/convolution_job.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

// Adds the products of all input positions with one kernel tap into the output positions they reach.
template <typename Acc>
void scatter_columns(const ConvolutionJob& job, const SpatialView& in, const Triple& output,
                     const Acc* columns, int64_t channel_count, Acc* sums) {
  const ConvolutionOptions& options = job.options;
  for (int64_t c = 0; c < channel_count; ++c) {
    Acc* channel = sums + c * output[0] * output[1] * output[2];
    for (int64_t tap = 0; tap < job.taps(); ++tap) {
      const Triple k{tap / (job.kernel[1] * job.kernel[2]), tap / job.kernel[2] % job.kernel[1],
                     tap % job.kernel[2]};
      for (int64_t d = 0; d < in.sizes[0]; ++d) {
        const int64_t od = d * options.stride[0] - options.padding[0] + k[0] * options.dilation[0];
        for (int64_t h = 0; h < in.sizes[1]; ++h) {
          const int64_t oh = h * options.stride[1] - options.padding[1] + k[1] * options.dilation[1];
          for (int64_t w = 0; w < in.sizes[2]; ++w, ++columns) {
            const int64_t ow = w * options.stride[2] - options.padding[2] + k[2] * options.dilation[2];
            const bool inside =
                od >= 0 && od < output[0] && oh >= 0 && oh < output[1] && ow >= 0 && ow < output[2];
            if (inside) channel[(od * output[1] + oh) * output[2] + ow] += *columns;
          }
        }
      }
    }
  }
}

template <typename Acc, DType acc_dtype>
void convolve_transposed_as(const ConvolutionJob& job) {
  const SpatialView in(job.input);
  const SpatialView out(job.output);
  const int64_t groups = job.options.groups;
  const int64_t channels_in = job.weight.sizes[0] / groups;
  const int64_t channels_out = job.weight.sizes[1];
  const int64_t width = channels_out * job.taps();
  const int64_t positions = in.positions();
  const int64_t out_positions = out.positions();
  const StoragePtr columns = allocate_storage(static_cast<size_t>(width * positions) * sizeof(Acc), kHost, 0);
  const StoragePtr sums =
      allocate_storage(static_cast<size_t>(channels_out * out_positions) * sizeof(Acc), kHost, 0);
  for (int64_t n = 0; n < job.output.sizes[0]; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const MatrixView weight{job.weight.data_as<char>() + g * channels_in * width * job.element,
                              job.weight.dtype, 1, width};
      const MatrixView right{
          in.data + (n * in.batch_stride + g * channels_in * in.channel_stride) * job.element,
          job.input.dtype, in.channel_stride, in.position_stride()};
      gemm(
          {width, positions, channels_in, weight, right, {columns->data, acc_dtype, positions, 1}, {}, 1, 0});
      auto* sum = static_cast<Acc*>(sums->data);
      for (int64_t c = 0; c < channels_out; ++c) {
        Acc start = 0;
        if (job.bias != nullptr) {
          const MatrixView bias = bias_view(job, g * channels_out + c);
          convert_scalar(&start, acc_dtype, bias.data, bias.dtype);
        }
        std::fill_n(sum + c * out_positions, out_positions, start);
      }
      scatter_columns(job, in, out.sizes, static_cast<const Acc*>(columns->data), channels_out, sum);
      const int64_t sizes[4] = {channels_out, out.sizes[0], out.sizes[1], out.sizes[2]};
      const int64_t to[4] = {out.channel_stride, out.strides[0], out.strides[1], out.strides[2]};
      const int64_t from[4] = {out_positions, out.sizes[1] * out.sizes[2], out.sizes[2], 1};
      char* target = out.data + (n * out.batch_stride + g * channels_out * out.channel_stride) * job.element;
      strided_copy(4, sizes, {target, to, job.output.dtype}, {sum, from, acc_dtype});
    }
  }
}

}  // namespace

void convolve_transposed(const ConvolutionJob& job) {
  if (job.input.dtype == kFloat64) return convolve_transposed_as<double, kFloat64>(job);
  convolve_transposed_as<float, kFloat32>(job);
}

}  // namespace etcuda
