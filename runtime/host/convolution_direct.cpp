#include <algorithm>

#include "host/convolution_job.h"

namespace etcuda {
namespace {

// Columns of one block fit the second-level cache.
constexpr int64_t kColumnBytes = int64_t{1} << 20;

// One row of the column matrix: input values under one kernel tap at output positions [first, last).
template <typename T>
void gather_row(const SpatialView& image, const T* channel, const Triple& output,
                const ConvolutionOptions& options, const Triple& tap, int64_t first, int64_t last, T* row) {
  Triple at{first / (output[1] * output[2]), first / output[2] % output[1], first % output[2]};
  for (int64_t p = first; p < last;) {
    const int64_t run = std::min(output[2] - at[2], last - p);
    const int64_t d = at[0] * options.stride[0] - options.padding[0] + tap[0] * options.dilation[0];
    const int64_t h = at[1] * options.stride[1] - options.padding[1] + tap[1] * options.dilation[1];
    const bool inside = d >= 0 && d < image.sizes[0] && h >= 0 && h < image.sizes[1];
    const T* line = channel + (inside ? d * image.strides[0] + h * image.strides[1] : 0);
    int64_t w = at[2] * options.stride[2] - options.padding[2] + tap[2] * options.dilation[2];
    for (int64_t i = 0; i < run; ++i, w += options.stride[2]) {
      row[i] = inside && w >= 0 && w < image.sizes[2] ? line[w * image.strides[2]] : T{0};
    }
    row += run;
    p += run;
    at[2] = 0;
    if (++at[1] == output[1]) {
      at[1] = 0;
      ++at[0];
    }
  }
}

template <typename T>
void gather_columns(const ConvolutionJob& job, const SpatialView& image, const char* channels,
                    int64_t channel_count, const Triple& output, int64_t first, int64_t last, void* columns) {
  auto* row = static_cast<T*>(columns);
  for (int64_t c = 0; c < channel_count; ++c) {
    const T* channel = reinterpret_cast<const T*>(channels) + c * image.channel_stride;
    for (int64_t kd = 0; kd < job.kernel[0]; ++kd) {
      for (int64_t kh = 0; kh < job.kernel[1]; ++kh) {
        for (int64_t kw = 0; kw < job.kernel[2]; ++kw) {
          gather_row(image, channel, output, job.options, {kd, kh, kw}, first, last, row);
          row += last - first;
        }
      }
    }
  }
}

void gather(const ConvolutionJob& job, const SpatialView& image, const char* channels, int64_t channel_count,
            const Triple& output, int64_t first, int64_t last, void* columns) {
  switch (job.element) {
    case 2:
      return gather_columns<uint16_t>(job, image, channels, channel_count, output, first, last, columns);
    case 4:
      return gather_columns<uint32_t>(job, image, channels, channel_count, output, first, last, columns);
    default:
      return gather_columns<uint64_t>(job, image, channels, channel_count, output, first, last, columns);
  }
}

}  // namespace

void convolve(const ConvolutionJob& job) {
  const SpatialView in(job.input);
  const SpatialView out(job.output);
  const int64_t groups = job.options.groups;
  const int64_t channels_in = job.weight.sizes[1];
  const int64_t channels_out = job.output.sizes[1] / groups;
  const int64_t depth = channels_in * job.taps();
  const int64_t positions = out.positions();
  const int64_t out_step = out.position_stride();
  bool direct = job.taps() == 1 && in.position_stride() >= 0;
  for (int i = 0; i < 3; ++i) direct = direct && job.options.stride[i] == 1 && job.options.padding[i] == 0;
  const int64_t block = std::max<int64_t>(64, kColumnBytes / std::max<int64_t>(1, depth * job.element));
  StoragePtr columns;
  if (!direct) {
    columns =
        allocate_storage(static_cast<size_t>(depth * std::min(block, positions) * job.element), kHost, 0);
  }
  for (int64_t n = 0; n < job.output.sizes[0]; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const char* from = in.data + (n * in.batch_stride + g * channels_in * in.channel_stride) * job.element;
      char* to = out.data + (n * out.batch_stride + g * channels_out * out.channel_stride) * job.element;
      const MatrixView weight{job.weight.data_as<char>() + g * channels_out * depth * job.element,
                              job.weight.dtype, depth, 1};
      for (int64_t first = 0; first < positions; first += block) {
        const int64_t last = std::min(positions, first + block);
        MatrixView right;
        if (direct) {
          right = {const_cast<char*>(from) + first * in.position_stride() * job.element, job.input.dtype,
                   in.channel_stride, in.position_stride()};
        } else {
          gather(job, in, from, channels_in, out.sizes, first, last, columns->data);
          right = {columns->data, job.input.dtype, last - first, 1};
        }
        gemm({channels_out,
              last - first,
              depth,
              weight,
              right,
              {to + first * out_step * job.element, job.output.dtype, out.channel_stride, out_step},
              bias_view(job, g * channels_out),
              1,
              job.bias == nullptr ? 0.0 : 1.0});
      }
    }
  }
}

}  // namespace etcuda
