#include "host/convolution.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/failure.h"
#include "host/gemm.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

// Columns of one block fit the second-level cache.
constexpr int64_t kColumnBytes = int64_t{1} << 20;

using Triple = std::array<int64_t, 3>;

std::string shape(const Tensor& tensor) { return describe_shape(tensor.rank, tensor.sizes.data()); }

// The strides grow from the channels over the innermost spatial dimension outwards. A tensor whose sizes make both
// formats possible counts as contiguous. Follows torch's rule, which compiled code relies on.
bool is_channels_last(const Tensor& tensor) {
  if (tensor.rank != 4 && tensor.rank != 5) return false;
  if (tensor.strides[1] == 0) return false;
  int64_t least = 0;
  const auto visit = [&](size_t dim) {
    if (tensor.sizes[dim] == 0 || tensor.strides[dim] < least) return false;
    if (dim == 0 && least == tensor.strides[1]) return false;
    least = tensor.strides[dim] * std::max<int64_t>(tensor.sizes[dim], 1);
    return true;
  };
  bool holds = visit(1);
  for (auto dim = static_cast<size_t>(tensor.rank - 1); holds && dim >= 2; --dim) holds = visit(dim);
  return holds && visit(0);
}

// A tensor as [batch, channels, depth, height, width].
struct Image {
  char* data;
  int64_t batch_stride;
  int64_t channel_stride;
  Triple sizes{1, 1, 1};
  Triple strides{0, 0, 0};

  explicit Image(const Tensor& tensor)
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

struct Job {
  const Tensor& input;
  const Tensor& weight;
  const Tensor* bias;
  const ConvolutionOptions& options;
  Tensor& output;
  Triple kernel;
  int64_t element;
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

std::unique_ptr<Tensor> contiguous(const Tensor& tensor) {
  int64_t strides[kMaxTensorRank] = {};
  int64_t step = 1;
  for (auto i = static_cast<size_t>(tensor.rank); i-- > 0;) {
    strides[i] = step;
    step *= tensor.sizes[i];
  }
  auto copy = make_empty(tensor.rank, tensor.sizes.data(), strides, tensor.dtype, kHost, 0);
  strided_copy(tensor.rank, tensor.sizes.data(), {copy->data(), copy->strides.data(), copy->dtype},
               {tensor.data(), tensor.strides.data(), tensor.dtype});
  return copy;
}

// One row of the column matrix: input values under one kernel tap at output positions [first, last).
template <typename T>
void gather_row(const Image& image, const T* channel, const Triple& output, const ConvolutionOptions& options,
                const Triple& tap, int64_t first, int64_t last, T* row) {
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
void gather_columns(const Job& job, const Image& image, const char* channels, int64_t channel_count,
                    const Triple& output, int64_t first, int64_t last, void* columns) {
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

void gather(const Job& job, const Image& image, const char* channels, int64_t channel_count, const Triple& output,
            int64_t first, int64_t last, void* columns) {
  switch (job.element) {
    case 2: return gather_columns<uint16_t>(job, image, channels, channel_count, output, first, last, columns);
    case 4: return gather_columns<uint32_t>(job, image, channels, channel_count, output, first, last, columns);
    default: return gather_columns<uint64_t>(job, image, channels, channel_count, output, first, last, columns);
  }
}

MatrixView bias_view(const Job& job, int64_t first_channel) {
  if (job.bias == nullptr) return {};
  return {job.bias->data_as<char>() + first_channel * job.bias->strides[0] * job.element, job.bias->dtype,
          job.bias->strides[0], 0};
}

void convolve(const Job& job) {
  const Image in(job.input);
  const Image out(job.output);
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
    columns = allocate_storage(static_cast<size_t>(depth * std::min(block, positions) * job.element), kHost, 0);
  }
  for (int64_t n = 0; n < job.output.sizes[0]; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const char* from =
          in.data + (n * in.batch_stride + g * channels_in * in.channel_stride) * job.element;
      char* to = out.data + (n * out.batch_stride + g * channels_out * out.channel_stride) * job.element;
      const MatrixView weight{job.weight.data_as<char>() + g * channels_out * depth * job.element, job.weight.dtype,
                              depth, 1};
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
        gemm({channels_out, last - first, depth, weight, right,
              {to + first * out_step * job.element, job.output.dtype, out.channel_stride, out_step},
              bias_view(job, g * channels_out), 1, job.bias == nullptr ? 0.0 : 1.0});
      }
    }
  }
}

// Adds the products of all input positions with one kernel tap into the output positions they reach.
template <typename Acc>
void scatter_columns(const Job& job, const Image& in, const Triple& output, const Acc* columns, int64_t channel_count,
                     Acc* sums) {
  const ConvolutionOptions& options = job.options;
  for (int64_t c = 0; c < channel_count; ++c) {
    Acc* channel = sums + c * output[0] * output[1] * output[2];
    for (int64_t tap = 0; tap < job.taps(); ++tap) {
      const Triple k{tap / (job.kernel[1] * job.kernel[2]), tap / job.kernel[2] % job.kernel[1], tap % job.kernel[2]};
      for (int64_t d = 0; d < in.sizes[0]; ++d) {
        const int64_t od = d * options.stride[0] - options.padding[0] + k[0] * options.dilation[0];
        for (int64_t h = 0; h < in.sizes[1]; ++h) {
          const int64_t oh = h * options.stride[1] - options.padding[1] + k[1] * options.dilation[1];
          for (int64_t w = 0; w < in.sizes[2]; ++w, ++columns) {
            const int64_t ow = w * options.stride[2] - options.padding[2] + k[2] * options.dilation[2];
            const bool inside = od >= 0 && od < output[0] && oh >= 0 && oh < output[1] && ow >= 0 && ow < output[2];
            if (inside) channel[(od * output[1] + oh) * output[2] + ow] += *columns;
          }
        }
      }
    }
  }
}

template <typename Acc, DType acc_dtype>
void convolve_transposed(const Job& job) {
  const Image in(job.input);
  const Image out(job.output);
  const int64_t groups = job.options.groups;
  const int64_t channels_in = job.weight.sizes[0] / groups;
  const int64_t channels_out = job.weight.sizes[1];
  const int64_t width = channels_out * job.taps();
  const int64_t positions = in.positions();
  const int64_t out_positions = out.positions();
  const StoragePtr columns = allocate_storage(static_cast<size_t>(width * positions) * sizeof(Acc), kHost, 0);
  const StoragePtr sums = allocate_storage(static_cast<size_t>(channels_out * out_positions) * sizeof(Acc), kHost, 0);
  for (int64_t n = 0; n < job.output.sizes[0]; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const MatrixView weight{job.weight.data_as<char>() + g * channels_in * width * job.element, job.weight.dtype, 1,
                              width};
      const MatrixView right{in.data + (n * in.batch_stride + g * channels_in * in.channel_stride) * job.element,
                             job.input.dtype, in.channel_stride, in.position_stride()};
      gemm({width, positions, channels_in, weight, right, {columns->data, acc_dtype, positions, 1}, {}, 1, 0});
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

std::unique_ptr<Tensor> make_output(const Tensor& input, const Tensor& weight, const ConvolutionOptions& options) {
  const int64_t rank = input.rank;
  std::array<int64_t, 5> sizes{input.sizes[0], options.transposed ? weight.sizes[1] * options.groups : weight.sizes[0]};
  for (int64_t i = 0; i < options.spatial_rank; ++i) {
    const auto dim = static_cast<size_t>(i + 2);
    const auto option = static_cast<size_t>(3 - options.spatial_rank + i);
    const int64_t reach = options.dilation[option] * (weight.sizes[dim] - 1) + 1;
    sizes[dim] = options.transposed ? (input.sizes[dim] - 1) * options.stride[option] - 2 * options.padding[option] +
                                          reach + options.output_padding[option]
                                    : (input.sizes[dim] + 2 * options.padding[option] - reach) / options.stride[option] + 1;
    if (sizes[dim] <= 0 || input.sizes[dim] + 2 * options.padding[option] < (options.transposed ? 0 : reach)) {
      fail(ErrorCode::InvalidArgument, "convolution: input %s is smaller than the kernel %s.", shape(input).c_str(),
           shape(weight).c_str());
    }
  }
  std::array<int64_t, 5> strides{};
  int64_t step = 1;
  // As torch: double precision has no channels-last path.
  if (input.dtype != kFloat64 && (is_channels_last(input) || is_channels_last(weight))) {
    strides[1] = step;
    step *= sizes[1];
    for (auto i = static_cast<size_t>(rank); i-- > 2;) {
      strides[i] = step;
      step *= sizes[i];
    }
    strides[0] = step;
  } else {
    for (auto i = static_cast<size_t>(rank); i-- > 0;) {
      strides[i] = step;
      step *= sizes[i];
    }
  }
  return make_empty(rank, sizes.data(), strides.data(), input.dtype, kHost, 0);
}

void check_shapes(const Tensor& input, const Tensor& weight, const Tensor* bias, const ConvolutionOptions& options) {
  const int64_t out = options.transposed ? weight.sizes[1] * options.groups : weight.sizes[0];
  const int64_t in = options.transposed ? weight.sizes[0] : weight.sizes[1] * options.groups;
  const bool fits = weight.rank == input.rank && input.sizes[1] == in && out % options.groups == 0 &&
                    in % options.groups == 0 && (bias == nullptr || (bias->rank == 1 && bias->sizes[0] == out));
  const bool same = weight.dtype == input.dtype && (bias == nullptr || bias->dtype == input.dtype);
  if (!fits || !same) {
    fail(ErrorCode::InvalidArgument, "convolution: input %s of %s does not fit weight %s of %s in %lld groups.",
         shape(input).c_str(), dtype_name(input.dtype), shape(weight).c_str(), dtype_name(weight.dtype),
         static_cast<long long>(options.groups));
  }
}

}  // namespace

ConvolutionOptions convolution_options(const Tensor& input, IntList stride, IntList padding, IntList dilation,
                                       bool transposed, IntList output_padding, int64_t groups) {
  ConvolutionOptions options;
  options.spatial_rank = input.rank - 2;
  options.transposed = transposed;
  options.groups = groups;
  if (options.spatial_rank < 1 || options.spatial_rank > 3 || groups < 1) {
    fail(ErrorCode::NotSupported, "convolution: an input of shape %s in %lld groups is not supported.",
         shape(input).c_str(), static_cast<long long>(groups));
  }
  const auto spread = [&](IntList list, int64_t* target, int64_t least, const char* what) {
    for (int64_t i = 0; i < options.spatial_rank; ++i) {
      const bool fits = list.size == 1 || list.size == options.spatial_rank;
      const int64_t value = fits ? list.data[list.size == 1 ? 0 : i] : -1;
      if (value < least) fail(ErrorCode::InvalidArgument, "convolution: the %s is not valid.", what);
      target[3 - options.spatial_rank + i] = value;
    }
  };
  spread(stride, options.stride, 1, "stride");
  spread(padding, options.padding, 0, "padding");
  spread(dilation, options.dilation, 1, "dilation");
  if (transposed) spread(output_padding, options.output_padding, 0, "output padding");
  return options;
}

std::unique_ptr<Tensor> host_convolution(const Tensor& input, const Tensor& weight, const Tensor* bias,
                                         const ConvolutionOptions& options) {
  check_shapes(input, weight, bias, options);
  auto output = make_output(input, weight, options);
  if (output->numel() == 0) return output;
  std::unique_ptr<Tensor> dense_weight;
  if (!weight.is_contiguous()) dense_weight = contiguous(weight);
  std::unique_ptr<Tensor> dense_input;
  if (options.transposed && Image(input).position_stride() < 0) dense_input = contiguous(input);
  const Tensor& from = dense_input ? *dense_input : input;
  const Tensor& kernel = dense_weight ? *dense_weight : weight;
  const Job job{from, kernel, bias, options, *output, Image(kernel).sizes, static_cast<int64_t>(dtype_size(input.dtype))};
  if (!options.transposed) {
    convolve(job);
  } else if (input.dtype == kFloat64) {
    convolve_transposed<double, kFloat64>(job);
  } else {
    convolve_transposed<float, kFloat32>(job);
  }
  return output;
}

}  // namespace etcuda
