#include "host/convolution.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/failure.h"
#include "host/convolution_job.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

std::string shape(const Tensor& tensor) {
  return describe_shape(tensor.rank, tensor.sizes.data());
}

// The strides grow from the channels over the innermost spatial dimension outwards. A tensor whose sizes make
// both formats possible counts as contiguous. Follows torch's rule, which compiled code relies on.
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

std::unique_ptr<Tensor> make_output(const Tensor& input, const Tensor& weight,
                                    const ConvolutionOptions& options) {
  const int64_t rank = input.rank;
  std::array<int64_t, 5> sizes{input.sizes[0],
                               options.transposed ? weight.sizes[1] * options.groups : weight.sizes[0]};
  for (int64_t i = 0; i < options.spatial_rank; ++i) {
    const auto dim = static_cast<size_t>(i + 2);
    const auto option = static_cast<size_t>(3 - options.spatial_rank + i);
    const int64_t reach = options.dilation[option] * (weight.sizes[dim] - 1) + 1;
    sizes[dim] = options.transposed
                     ? (input.sizes[dim] - 1) * options.stride[option] - 2 * options.padding[option] + reach +
                           options.output_padding[option]
                     : (input.sizes[dim] + 2 * options.padding[option] - reach) / options.stride[option] + 1;
    if (sizes[dim] <= 0 ||
        input.sizes[dim] + 2 * options.padding[option] < (options.transposed ? 0 : reach)) {
      fail(ErrorCode::InvalidArgument, "convolution: input %s is smaller than the kernel %s.",
           shape(input).c_str(), shape(weight).c_str());
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

void check_shapes(const Tensor& input, const Tensor& weight, const Tensor* bias,
                  const ConvolutionOptions& options) {
  const int64_t out = options.transposed ? weight.sizes[1] * options.groups : weight.sizes[0];
  const int64_t in = options.transposed ? weight.sizes[0] : weight.sizes[1] * options.groups;
  const bool fits = weight.rank == input.rank && input.sizes[1] == in && out % options.groups == 0 &&
                    in % options.groups == 0 &&
                    (bias == nullptr || (bias->rank == 1 && bias->sizes[0] == out));
  const bool same = weight.dtype == input.dtype && (bias == nullptr || bias->dtype == input.dtype);
  if (!fits || !same) {
    fail(ErrorCode::InvalidArgument,
         "convolution: input %s of %s does not fit weight %s of %s in %lld groups.", shape(input).c_str(),
         dtype_name(input.dtype), shape(weight).c_str(), dtype_name(weight.dtype),
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
  if (options.transposed && SpatialView(input).position_stride() < 0) dense_input = contiguous(input);
  const Tensor& from = dense_input ? *dense_input : input;
  const Tensor& kernel = dense_weight ? *dense_weight : weight;
  const ConvolutionJob job{from,
                           kernel,
                           bias,
                           options,
                           *output,
                           SpatialView(kernel).sizes,
                           static_cast<int64_t>(dtype_size(input.dtype))};
  if (options.transposed) {
    convolve_transposed(job);
  } else {
    convolve(job);
  }
  return output;
}

}  // namespace etcuda
