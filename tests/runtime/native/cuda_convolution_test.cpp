// Convolutions through cuDNN, against the fake driver and the fake cuDNN.
#include <cmath>
#include <cstdlib>
#include <random>

#include "cuda/capture.h"
#include "cuda/convolution.h"
#include "cuda/stream.h"
#include "cuda_counts.h"
#include "host/strided_copy.h"
#include "logged.h"
#include "program.h"

using namespace etcuda;
using namespace etcuda_test;

namespace {

struct CudnnCounts {
  size_t plans, executions, descriptors;
  void* stream;
};

CudnnCounts cudnn_counts() {
  CudnnCounts result{};
  void* library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return result;
  reinterpret_cast<void (*)(CudnnCounts*)>(dlsym(library, "fake_cudnn_counts"))(&result);
  dlclose(library);
  return result;
}

// Makes the fake fail while it lives.
struct Failing {
  explicit Failing(const char* how) { setenv("ETCUDA_FAKE_CUDNN", how, 1); }
  ~Failing() { unsetenv("ETCUDA_FAKE_CUDNN"); }
};

double value_at(const Tensor& tensor, int64_t index) {
  double value = 0;
  convert_scalar(&value, kFloat64,
                 tensor.data_as<char>() + index * static_cast<int64_t>(dtype_size(tensor.dtype)),
                 tensor.dtype);
  return value;
}

void fill(const Tensor& tensor, std::mt19937& random) {
  std::uniform_real_distribution<double> real(-1, 1);
  for (int64_t i = 0; i < tensor.extent(); ++i) {
    const double value = real(random);
    convert_scalar(tensor.data_as<char>() + i * static_cast<int64_t>(dtype_size(tensor.dtype)), tensor.dtype,
                   &value, kFloat64);
  }
}

std::unique_ptr<Tensor> images(DType dtype, int64_t n, int64_t c, int64_t h, int64_t w,
                               std::mt19937& random) {
  const int64_t sizes[4] = {n, c, h, w};
  const int64_t strides[4] = {h * w * c, 1, w * c, c};
  auto made = make_empty(4, sizes, strides, dtype, kCuda, 0);
  fill(*made, random);
  return made;
}

std::unique_ptr<Tensor> dense(DType dtype, std::vector<int64_t> sizes, std::mt19937& random) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  auto made = make_empty(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype, kCuda, 0);
  fill(*made, random);
  return made;
}

struct Case {
  DType dtype = kFloat16;
  int64_t n = 1, c = 4, h = 6, w = 5, o = 6, kh = 3, kw = 3;
  ConvolutionNumbers numbers;
  bool bias = true, residual = false;
};

struct Call {
  std::unique_ptr<Tensor> x, weight, bias, residual, out;
  std::vector<double> expected;
  ConvolutionNumbers numbers;

  bool run() const { return cudnn_convolution(*x, *weight, bias.get(), residual.get(), *out, numbers); }

  void check(double tolerance) const {
    for (size_t i = 0; i < expected.size(); ++i) {
      const double got = value_at(*out, static_cast<int64_t>(i));
      if (!(std::abs(got - expected[i]) <= tolerance)) {
        throw std::runtime_error(format("at %zu: got %g, expected %g", i, got, expected[i]));
      }
    }
  }
};

Call make_call(const Case& c, std::mt19937& random) {
  const ConvolutionNumbers& how = c.numbers;
  const int64_t oh = (c.h + 2 * how.padding[0] - how.dilation[0] * (c.kh - 1) - 1) / how.stride[0] + 1;
  const int64_t ow = (c.w + 2 * how.padding[1] - how.dilation[1] * (c.kw - 1) - 1) / how.stride[1] + 1;
  const int64_t per_group = c.c / how.groups;
  Call call;
  call.numbers = how;
  call.x = images(c.dtype, c.n, c.c, c.h, c.w, random);
  call.weight = dense(c.dtype, {c.o, c.kh, c.kw, per_group}, random);
  if (c.bias) call.bias = dense(c.dtype, {c.o}, random);
  if (c.residual) call.residual = images(c.dtype, c.n, c.o, oh, ow, random);
  call.out = images(c.dtype, c.n, c.o, oh, ow, random);
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t y = 0; y < oh; ++y) {
      for (int64_t x = 0; x < ow; ++x) {
        for (int64_t o = 0; o < c.o; ++o) {
          double sum = c.bias ? value_at(*call.bias, o) : 0;
          for (int64_t i = 0; i < c.kh * c.kw * per_group; ++i) {
            const int64_t channel = i % per_group, tap = i / per_group;
            const int64_t sy = y * how.stride[0] - how.padding[0] + tap / c.kw * how.dilation[0];
            const int64_t sx = x * how.stride[1] - how.padding[1] + tap % c.kw * how.dilation[1];
            if (sy < 0 || sy >= c.h || sx < 0 || sx >= c.w) continue;
            const int64_t from = o / (c.o / how.groups) * per_group + channel;
            sum += value_at(*call.x, ((n * c.h + sy) * c.w + sx) * c.c + from) *
                   value_at(*call.weight, o * c.kh * c.kw * per_group + i);
          }
          if (c.residual) sum += value_at(*call.residual, static_cast<int64_t>(call.expected.size()));
          call.expected.push_back(how.relu && sum < 0 ? 0 : sum);
        }
      }
    }
  }
  return call;
}

Case with(const std::array<int64_t, 2>& stride, const std::array<int64_t, 2>& padding,
          const std::array<int64_t, 2>& dilation, int64_t groups) {
  Case made;
  made.numbers = {stride, padding, dilation, groups, false};
  return made;
}

}  // namespace

TEST(cuda_convolutions_with_what_follows_them) {
  std::mt19937 random(21);
  Stream stream(0);
  const StreamScope scope(stream);
  for (const DType dtype : {kFloat16, kBFloat16, kFloat32}) {
    for (Case each : {with({1, 1}, {1, 1}, {1, 1}, 1), with({2, 1}, {0, 2}, {1, 2}, 2),
                      with({1, 3}, {2, 0}, {2, 1}, 1)}) {
      each.dtype = dtype;
      for (int fused = 0; fused < 8; ++fused) {
        each.bias = (fused & 1) != 0;
        each.residual = (fused & 2) != 0;
        each.numbers.relu = (fused & 4) != 0;
        const Call call = make_call(each, random);
        CHECK(call.run());
        call.check(dtype == kFloat32 ? 1e-4 : (dtype == kFloat16 ? 1e-2 : 8e-2));
        CHECK(cudnn_counts().stream == stream.handle());
      }
    }
  }
}

TEST(cuda_convolutions_of_a_shape_have_one_plan) {
  std::mt19937 random(22);
  Stream stream(0);
  const StreamScope scope(stream);
  Case each;
  each.h = 11;
  const Call first = make_call(each, random), second = make_call(each, random);
  CHECK(first.run());
  const CudnnCounts before = cudnn_counts();
  CHECK(second.run() && first.run());
  CHECK_EQ(cudnn_counts().plans, before.plans);
  CHECK_EQ(cudnn_counts().executions, before.executions + 2);
  // What describes one call goes with it.
  CHECK_EQ(cudnn_counts().descriptors, before.descriptors);
  second.check(1e-2);
}

TEST(cuda_convolutions_in_fp32_use_tensor_cores_where_that_is_allowed) {
  std::mt19937 random(23);
  Stream stream(0);
  const StreamScope scope(stream);
  Case each;
  each.dtype = kFloat32;
  each.w = 12;
  const Call call = make_call(each, random);
  CHECK(call.run());
  const size_t plans = cudnn_counts().plans;
  current_cuda().allow_tf32 = true;
  CHECK(call.run());
  CHECK_EQ(cudnn_counts().plans, plans + 1);
  current_cuda().allow_tf32 = false;
}

TEST(cuda_convolutions_that_cudnn_does_not_run_are_left_to_the_program) {
  std::mt19937 random(24);
  Stream stream(0);
  const StreamScope scope(stream);
  int64_t width = 20;
  for (const auto& [how, words] : {std::pair<const char*, const char*>{"no engine", "no engine knows it"},
                                   {"no plan", "does not want to"},
                                   {"bad graph", "cudnnBackendFinalize"}}) {
    Case each;
    each.w = ++width;
    const Call call = make_call(each, random);
    const size_t executions = cudnn_counts().executions, descriptors = cudnn_counts().descriptors;
    const std::string log = logged([&, how = how] {
      const Failing failing(how);
      CHECK(!call.run());
    });
    CHECK(log.find(words) != std::string::npos);
    CHECK(log.find("the program's own kernel does") != std::string::npos);
    // Asked once.
    CHECK(!call.run());
    CHECK_EQ(cudnn_counts().executions, executions);
    CHECK_EQ(cudnn_counts().descriptors, descriptors);
  }
}

TEST(cuda_convolutions_that_fail_say_why) {
  std::mt19937 random(25);
  Stream stream(0);
  const StreamScope scope(stream);
  Case each;
  each.h = 13;
  const Call call = make_call(each, random);
  CHECK(call.run());
  const Failing failing("execute");
  CHECK_FAILS(
      Internal,
      "cudnnBackendExecute failed with CUDNN_STATUS_EXECUTION_FAILED (5000): the kernel did not start",
      call.run());
  int32_t is_done = 7;
  const int64_t numbers[8] = {1, 1, 0, 0, 1, 1, 1, 0};
  using Function = int32_t(Tensor*, Tensor*, Tensor*, Tensor*, Tensor*, const int64_t*, int32_t*);
  take_shim_error();
  CHECK_EQ(call_shim<Function>("aoti_torch_cuda_fused_convolution")(
               call.x.get(), call.weight.get(), call.bias.get(), nullptr, call.out.get(), numbers, &is_done),
           1);
  CHECK(take_shim_error().message.find("the kernel did not start") != std::string::npos);
}

TEST(cuda_convolutions_of_what_is_no_convolution) {
  std::mt19937 random(26);
  Stream stream(0);
  const StreamScope scope(stream);
  const auto refused = [&](const char* words, const auto& change) {
    Call call = make_call(Case(), random);
    change(call);
    CHECK_FAILS(InvalidArgument, words, call.run());
  };
  refused("x: expected 4 dimensions, dense with channels last",
          [&](Call& call) { call.x = dense(kFloat16, {1, 4, 6, 5}, random); });
  refused("weight: expected 4 contiguous dimensions of the dtype of x, got float32",
          [&](Call& call) { call.weight = dense(kFloat32, {6, 3, 3, 4}, random); });
  refused("weight: expected [O, KH, KW, C / groups]",
          [&](Call& call) { call.weight = dense(kFloat16, {6, 3, 3, 2}, random); });
  refused("out: expected the shape that x, weight and strides give",
          [&](Call& call) { call.out = images(kFloat16, 1, 6, 3, 3, random); });
  refused("bias: expected a number of the dtype of x for each channel of out",
          [&](Call& call) { call.bias = dense(kFloat16, {5}, random); });
  refused("residual: expected the shape, order and dtype of out",
          [&](Call& call) { call.residual = images(kFloat16, 1, 6, 4, 4, random); });
}

TEST(cuda_convolutions_of_no_images) {
  std::mt19937 random(27);
  Stream stream(0);
  const StreamScope scope(stream);
  Case each;
  each.n = 0;
  const size_t executions = cudnn_counts().executions;
  CHECK(make_call(each, random).run());
  CHECK_EQ(cudnn_counts().executions, executions);
}

TEST(cuda_convolutions_make_no_plan_while_a_graph_is_recorded) {
  std::mt19937 random(28);
  Stream stream(0);
  const StreamScope scope(stream);
  Case each;
  each.h = 17;
  const Call call = make_call(each, random);
  Capture capture(stream, std::make_shared<GraphPool>(0));
  CHECK_FAILS(NotSupported, "for which cuDNN makes a plan, cannot be part of a CUDA graph", call.run());
}
