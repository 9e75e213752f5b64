#include <cmath>
#include <random>

#include "check.h"
#include "core/half.h"
#include "core/processor.h"
#include "host/convolution.h"
#include "host/gemm.h"
#include "host/strided_copy.h"

using namespace etcuda;

namespace {

struct Values {
  DType dtype;
  std::vector<char> bytes;
  Values(DType dtype, size_t count) : dtype(dtype), bytes(count * dtype_size(dtype)) {}
  double get(int64_t i) const {
    double value = 0;
    convert_scalar(&value, kFloat64, bytes.data() + i * static_cast<int64_t>(dtype_size(dtype)), dtype);
    return value;
  }
  void set(int64_t i, double value) {
    convert_scalar(bytes.data() + i * static_cast<int64_t>(dtype_size(dtype)), dtype, &value, kFloat64);
  }
  void fill(std::mt19937& random) {
    std::uniform_real_distribution<double> real(-1, 1);
    for (size_t i = 0; i < bytes.size() / dtype_size(dtype); ++i) set(static_cast<int64_t>(i), real(random));
  }
};

double tolerance(DType dtype) {
  if (dtype == kFloat64) return 1e-12;
  if (dtype == kFloat32) return 2e-5;
  return dtype == kFloat16 ? 2e-3 : 1.6e-2;
}

using Kernel = void (*)(const GemmProblem&, void*);

void run(Kernel kernel, const GemmProblem& problem) {
  std::vector<char> workspace(static_cast<size_t>(gemm_workspace_bytes(problem)) + 64);
  const auto address = reinterpret_cast<uintptr_t>(workspace.data());
  kernel(problem, reinterpret_cast<void*>((address + 63) / 64 * 64));
}

struct Layout {
  int64_t row, col;
};

void check_gemm(Kernel kernel, DType dtype, int64_t m, int64_t n, int64_t k, bool a_t, bool b_t, bool out_t,
                double beta, std::mt19937& random) {
  const int64_t pad = static_cast<int64_t>(random() % 3);
  const Layout la = a_t ? Layout{1, m + pad} : Layout{k + pad, 1};
  const Layout lb = b_t ? Layout{1, k + pad} : Layout{n + pad, 1};
  const Layout lo = out_t ? Layout{1, m + pad} : Layout{n + pad, 1};
  Values a(dtype, static_cast<size_t>((m + pad) * (k + pad) + 1)),
      b(dtype, static_cast<size_t>((n + pad) * (k + pad) + 1));
  Values out(dtype, static_cast<size_t>((m + pad) * (n + pad) + 1)), bias(dtype, static_cast<size_t>(n + 1));
  a.fill(random);
  b.fill(random);
  bias.fill(random);
  const double poison = std::nan("");
  for (int64_t i = 0; i < (m + pad) * (n + pad); ++i) out.set(i, poison);
  if (beta == 0) {
    for (int64_t i = 0; i <= n; ++i) bias.set(i, poison);
  }
  const GemmProblem problem{m,
                            n,
                            k,
                            {a.bytes.data(), dtype, la.row, la.col},
                            {b.bytes.data(), dtype, lb.row, lb.col},
                            {out.bytes.data(), dtype, lo.row, lo.col},
                            {bias.bytes.data(), dtype, 0, 1},
                            0.75,
                            beta};
  run(kernel, problem);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, scale = 1;
      for (int64_t p = 0; p < k; ++p) {
        const double term = a.get(i * la.row + p * la.col) * b.get(p * lb.row + j * lb.col);
        sum += term;
        scale += std::abs(term);
      }
      const double expected = 0.75 * sum + (beta == 0 ? 0 : beta * bias.get(j));
      const double got = out.get(i * lo.row + j * lo.col);
      if (!(std::abs(got - expected) <= tolerance(dtype) * scale)) {
        etcuda_test::fail_check(__FILE__, __LINE__,
                                format("m %ld n %ld k %ld %s at %ld, %ld: got %g, expected %g", m, n, k,
                                       dtype_name(dtype), i, j, got, expected));
      }
    }
  }
}

void check_all_gemms(Kernel kernel) {
  std::mt19937 random(3);
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 17, 33},  {3, 600, 40}, {4, 5, 300},
                               {5, 16, 7},    {6, 16, 256}, {7, 33, 257}, {97, 19, 300},
                               {13, 530, 11}, {2, 3, 0},    {800, 9, 3}};
  for (const DType dtype : {kFloat32, kFloat64, kBFloat16, kFloat16}) {
    for (const auto& shape : shapes) {
      for (int flags = 0; flags < 8; ++flags) {
        check_gemm(kernel, dtype, shape[0], shape[1], shape[2], (flags & 1) != 0, (flags & 2) != 0,
                   (flags & 4) != 0, flags % 3 == 0 ? 0.0 : 1.5, random);
      }
    }
  }
}

}  // namespace

TEST(gemm_portable_matches_double_precision) {
  check_all_gemms(gemm_portable);
}

TEST(gemm_avx2_matches_double_precision) {
  if (processor_has_avx2_fma_f16c()) check_all_gemms(gemm_avx2);
}

TEST(gemm_refuses_other_dtypes) {
  int32_t value = 0;
  const MatrixView integers{&value, kInt32, 1, 1};
  CHECK_FAILS(NotSupported, "int32 and int32 into int32",
              gemm({1, 1, 1, integers, integers, integers, {}, 1, 0}));
}

namespace {

struct ConvolutionCase {
  std::vector<int64_t> input, weight, stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;
  bool channels_last;
};

std::unique_ptr<Tensor> random_tensor(const std::vector<int64_t>& sizes, DType dtype, bool channels_last,
                                      std::mt19937& random) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  if (channels_last) {
    strides[1] = step;
    step *= sizes[1];
  }
  for (size_t i = sizes.size(); i-- > 0;) {
    if (channels_last && i == 1) continue;
    strides[i] = step;
    step *= sizes[i];
  }
  auto tensor = make_empty(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype, kHost, 0);
  std::uniform_real_distribution<double> real(-1, 1);
  for (int64_t i = 0; i < tensor->numel(); ++i) {
    const double value = real(random);
    convert_scalar(tensor->data_as<char>() + i * static_cast<int64_t>(dtype_size(dtype)), dtype, &value,
                   kFloat64);
  }
  return tensor;
}

double at(const Tensor& tensor, const std::vector<int64_t>& index) {
  int64_t offset = 0;
  for (size_t i = 0; i < index.size(); ++i) offset += index[i] * tensor.strides[i];
  double value = 0;
  convert_scalar(&value, kFloat64,
                 tensor.data_as<char>() + offset * static_cast<int64_t>(dtype_size(tensor.dtype)),
                 tensor.dtype);
  return value;
}

// Visits all indices of a shape.
template <typename Visit>
void for_each_index(const std::vector<int64_t>& sizes, const Visit& visit) {
  std::vector<int64_t> index(sizes.size(), 0);
  for (;;) {
    visit(index);
    size_t i = sizes.size();
    while (i-- > 0) {
      if (++index[i] < sizes[i]) break;
      index[i] = 0;
    }
    if (i == SIZE_MAX) return;
  }
}

std::vector<double> reference(const ConvolutionCase& c, const Tensor& input, const Tensor& weight,
                              const Tensor& bias, const Tensor& output) {
  const size_t spatial = c.stride.size();
  std::vector<int64_t> out_sizes(output.sizes.begin(), output.sizes.begin() + output.rank);
  std::vector<double> result;
  const int64_t out_per_group = out_sizes[1] / c.groups;
  const int64_t in_per_group = c.input[1] / c.groups;
  std::vector<int64_t> kernel(c.weight.begin() + 2, c.weight.end());
  for_each_index(out_sizes, [&](const std::vector<int64_t>& o) {
    double sum = at(bias, {o[1]});
    const int64_t group = o[1] / out_per_group;
    for_each_index(kernel, [&](const std::vector<int64_t>& k) {
      std::vector<int64_t> source{o[0], 0};
      for (size_t d = 0; d < spatial; ++d) {
        const int64_t position = c.transposed ? o[2 + d] + c.padding[d] - k[d] * c.dilation[d]
                                              : o[2 + d] * c.stride[d] - c.padding[d] + k[d] * c.dilation[d];
        if (c.transposed && position % c.stride[d] != 0) return;
        const int64_t in = c.transposed ? position / c.stride[d] : position;
        if (position < 0 || in >= c.input[2 + d]) return;
        source.push_back(in);
      }
      for (int64_t ci = 0; ci < in_per_group; ++ci) {
        source[1] = group * in_per_group + ci;
        std::vector<int64_t> tap = c.transposed ? std::vector<int64_t>{source[1], o[1] % out_per_group}
                                                : std::vector<int64_t>{o[1], ci};
        tap.insert(tap.end(), k.begin(), k.end());
        sum += at(input, source) * at(weight, tap);
      }
    });
    result.push_back(sum);
  });
  return result;
}

void check_convolution(const ConvolutionCase& c, DType dtype) {
  std::mt19937 random(5);
  const auto input = random_tensor(c.input, dtype, c.channels_last, random);
  const auto weight = random_tensor(c.weight, dtype, c.channels_last, random);
  const int64_t channels = c.transposed ? c.weight[1] * c.groups : c.weight[0];
  const auto bias = random_tensor({channels}, dtype, false, random);
  const auto list = [](const std::vector<int64_t>& values) {
    return IntList{values.data(), static_cast<int64_t>(values.size())};
  };
  const auto options = convolution_options(*input, list(c.stride), list(c.padding), list(c.dilation),
                                           c.transposed, list(c.output_padding), c.groups);
  const auto output = host_convolution(*input, *weight, bias.get(), options);
  const bool expects_channels_last = c.channels_last && dtype != kFloat64;
  CHECK_EQ(output->strides[1] == 1, expects_channels_last);
  const auto expected = reference(c, *input, *weight, *bias, *output);
  std::vector<int64_t> sizes(output->sizes.begin(), output->sizes.begin() + output->rank);
  size_t i = 0;
  for_each_index(sizes, [&](const std::vector<int64_t>& index) {
    const double got = at(*output, index);
    if (!(std::abs(got - expected[i]) <= tolerance(dtype) * 8)) {
      etcuda_test::fail_check(
          __FILE__, __LINE__,
          format("%s at %zu: got %g, expected %g", describe_shape(output->rank, sizes.data()).c_str(), i, got,
                 expected[i]));
    }
    ++i;
  });
}

}  // namespace

TEST(convolution_matches_its_definition) {
  const std::vector<ConvolutionCase> cases = {
      {{2, 4, 7, 6}, {6, 4, 3, 3}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, false, 1, false},
      {{2, 4, 7, 6}, {6, 4, 3, 3}, {2, 1}, {1, 2}, {1, 2}, {0, 0}, false, 1, true},
      {{1, 6, 9, 9}, {6, 2, 3, 2}, {2, 3}, {0, 1}, {2, 1}, {0, 0}, false, 3, false},
      {{1, 8, 5, 5}, {8, 1, 3, 3}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, false, 8, false},
      {{2, 5, 4, 3}, {7, 5, 1, 1}, {1, 1}, {0, 0}, {1, 1}, {0, 0}, false, 1, false},
      {{2, 5, 4, 3}, {7, 5, 1, 1}, {1, 1}, {0, 0}, {1, 1}, {0, 0}, false, 1, true},
      {{2, 3, 11}, {4, 3, 4}, {2}, {1}, {1}, {0}, false, 1, false},
      {{1, 2, 4, 5, 6}, {3, 2, 2, 3, 2}, {1, 2, 1}, {1, 0, 1}, {1, 1, 2}, {0, 0, 0}, false, 1, false},
      {{1, 4, 5, 4}, {4, 3, 3, 3}, {2, 2}, {1, 1}, {1, 1}, {1, 0}, true, 2, false},
      {{2, 4, 5, 4}, {4, 3, 3, 2}, {1, 2}, {0, 1}, {2, 1}, {0, 0}, true, 1, true},
      {{1, 3, 9}, {3, 2, 5}, {3}, {2}, {1}, {1}, true, 1, false},
  };
  for (const DType dtype : {kFloat32, kFloat64, kBFloat16, kFloat16}) {
    for (const ConvolutionCase& c : cases) check_convolution(c, dtype);
  }
}

TEST(convolution_in_many_blocks) {
  // 96 x 3 x 3 float columns are 3.4 kB each: 50 x 41 positions do not fit one block.
  check_convolution({{1, 96, 50, 41}, {2, 96, 3, 3}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, false, 1, false},
                    kFloat32);
}

TEST(convolution_refuses_what_does_not_fit) {
  std::mt19937 random(6);
  const auto input = random_tensor({1, 3, 4, 4}, kFloat32, false, random);
  const auto weight = random_tensor({2, 4, 3, 3}, kFloat32, false, random);
  const int64_t one = 1, zero = 0, negative = -1;
  const auto options = convolution_options(*input, {&one, 1}, {&zero, 1}, {&one, 1}, false, {&zero, 1}, 1);
  CHECK_FAILS(InvalidArgument, "does not fit weight [2, 4, 3, 3]",
              host_convolution(*input, *weight, nullptr, options));
  CHECK_FAILS(InvalidArgument, "padding",
              convolution_options(*input, {&one, 1}, {&negative, 1}, {&one, 1}, false, {&zero, 1}, 1));
  const auto large = random_tensor({2, 3, 5, 5}, kFloat32, false, random);
  CHECK_FAILS(InvalidArgument, "smaller than the kernel", host_convolution(*input, *large, nullptr, options));
}
