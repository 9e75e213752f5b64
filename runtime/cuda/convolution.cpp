#include "cuda/convolution.h"

#include <algorithm>
#include <cinttypes>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "core/failure.h"
#include "cuda/capture.h"
#include "cuda/convolution_plan.h"
#include "cuda/stream.h"

namespace etcuda {
namespace {

// Shapes beyond these run on the program's own kernels: plans are never given up, for CUDA graphs hold their
// kernels.
constexpr size_t kMostPlans = 4096;
constexpr int64_t kMostAlignment = 16;

struct Plans {
  std::mutex mutex;
  std::map<ConvolutionKey, std::unique_ptr<ConvolutionPlan>> made;
};

Plans& plans() {
  static auto* value = new Plans();
  return *value;
}

std::string shape_of(const Tensor& tensor) {
  return describe_shape(tensor.rank, tensor.sizes.data());
}

// Strides of dimensions of one element say nothing.
bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  for (const size_t dim : {1, 3, 2, 0}) {
    if (tensor.sizes[dim] != 1 && tensor.strides[dim] != expected) return false;
    expected *= tensor.sizes[dim];
  }
  return true;
}

void expect(bool holds, const char* name, const char* expected, const Tensor& got) {
  if (holds) return;
  fail(ErrorCode::InvalidArgument,
       "a convolution: %s: expected %s, got %s %s. Export the program again, and report it with the model.",
       name, expected, dtype_name(got.dtype), shape_of(got).c_str());
}

void check(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor* residual,
           const Tensor& out, const ConvolutionNumbers& numbers) {
  expect(x.rank == 4 && is_channels_last(x), "x", "4 dimensions, dense with channels last", x);
  expect(weight.rank == 4 && weight.is_contiguous() && weight.dtype == x.dtype, "weight",
         "4 contiguous dimensions of the dtype of x", weight);
  expect(numbers.groups > 0 && weight.sizes[3] * numbers.groups == x.sizes[1] &&
             weight.sizes[0] % std::max<int64_t>(numbers.groups, 1) == 0,
         "weight", "[O, KH, KW, C / groups]", weight);
  expect(out.rank == 4 && is_channels_last(out) && out.dtype == x.dtype, "out",
         "4 dimensions of the dtype of x, dense with channels last", out);
  bool fits = out.sizes[0] == x.sizes[0] && out.sizes[1] == weight.sizes[0];
  for (size_t i = 0; i < 2; ++i) {
    const int64_t reach = numbers.dilation[i] * (weight.sizes[i + 1] - 1) + 1;
    const int64_t room = x.sizes[i + 2] + 2 * numbers.padding[i] - reach;
    fits = fits && numbers.stride[i] > 0 && room >= 0 && out.sizes[i + 2] == room / numbers.stride[i] + 1;
  }
  expect(fits, "out", "the shape that x, weight and strides give", out);
  if (bias != nullptr) {
    expect(
        bias->rank == 1 && bias->sizes[0] == out.sizes[1] && bias->is_contiguous() && bias->dtype == x.dtype,
        "bias", "a number of the dtype of x for each channel of out", *bias);
  }
  if (residual != nullptr) {
    expect(residual->rank == 4 &&
               std::equal(out.sizes.begin(), out.sizes.begin() + 4, residual->sizes.begin()) &&
               is_channels_last(*residual) && residual->dtype == x.dtype,
           "residual", "the shape, order and dtype of out", *residual);
  }
}

ConvolutionKey key_of(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor* residual,
                      const Tensor& out, const ConvolutionNumbers& numbers) {
  ConvolutionKey key;
  key.device = current_cuda().device;
  key.dtype = x.dtype;
  key.tf32 = current_cuda().allow_tf32 && x.dtype == kFloat32;
  key.has_bias = bias != nullptr;
  key.has_residual = residual != nullptr;
  key.relu = numbers.relu;
  std::copy_n(x.sizes.begin(), 4, key.x.begin());
  key.weight = {weight.sizes[0], weight.sizes[3], weight.sizes[1], weight.sizes[2]};
  std::copy_n(out.sizes.begin(), 4, key.out.begin());
  key.stride = numbers.stride;
  key.padding = numbers.padding;
  key.dilation = numbers.dilation;
  auto bits = static_cast<uintptr_t>(kMostAlignment);
  for (const Tensor* tensor : {&x, &weight, bias, residual, &out}) {
    if (tensor != nullptr) bits |= reinterpret_cast<uintptr_t>(tensor->data());
  }
  key.alignment = static_cast<int64_t>(bits & (~bits + 1));
  return key;
}

// Null if there is no room for another one.
const ConvolutionPlan* find_plan(const ConvolutionKey& key, bool* is_full) {
  const std::lock_guard<std::mutex> lock(plans().mutex);
  const auto found = plans().made.find(key);
  *is_full = plans().made.size() >= kMostPlans;
  return found == plans().made.end() ? nullptr : found->second.get();
}

const ConvolutionPlan* plan_for(Cudnn& cudnn, const ConvolutionKey& key) {
  bool is_full = false;
  if (const ConvolutionPlan* plan = find_plan(key, &is_full)) return plan;
  if (is_full) return nullptr;
  if (is_capturing()) refuse_in_capture("the first convolution of a shape, for which cuDNN makes a plan,");
  // cuDNN may wait for the whole device meanwhile.
  const auto no_captures = exclude_captures();
  if (const ConvolutionPlan* plan = find_plan(key, &is_full)) return plan;
  std::unique_ptr<ConvolutionPlan> made;
  {
    const CudnnTurn turn = cudnn.take_turn(key.device);
    made = std::make_unique<ConvolutionPlan>(cudnn, turn.handle, key);
  }
  if (!made->usable()) {
    report_warning(format("cuDNN does not run a convolution of %s [%" PRId64 ", %" PRId64 ", %" PRId64
                          ", %" PRId64 "] with %" PRId64 " x %" PRId64
                          " taps, and the program's own kernel does: %s",
                          dtype_name(key.dtype), key.x[0], key.x[1], key.x[2], key.x[3], key.weight[2],
                          key.weight[3], made->reason().c_str()));
  }
  const std::lock_guard<std::mutex> lock(plans().mutex);
  auto& kept = plans().made[key];
  if (!kept) kept = std::move(made);
  return kept.get();
}

}  // namespace

bool cudnn_convolution(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor* residual,
                       const Tensor& out, const ConvolutionNumbers& numbers) {
  check(x, weight, bias, residual, out, numbers);
  if (out.numel() == 0) return true;
  Cudnn* cudnn = Cudnn::get();
  if (cudnn == nullptr) {
    static std::once_flag is_said;
    std::call_once(is_said, [] {
      report_warning("convolutions run on the program's own kernels: " + Cudnn::unavailable_reason());
    });
    return false;
  }
  if (x.numel() == 0) return false;
  const ConvolutionPlan* plan = plan_for(*cudnn, key_of(x, weight, bias, residual, out, numbers));
  if (plan == nullptr || !plan->usable()) return false;
  const Stream& stream = require_current_stream();
  // The stream's order, or the capture's pool, says when it may be used again.
  const size_t nbytes = plan->workspace_bytes();
  const StoragePtr workspace = nbytes == 0 ? nullptr : allocate_storage(nbytes, kCuda, stream.device());
  const ConvolutionPointers pointers{x.data(), weight.data(), bias == nullptr ? nullptr : bias->data(),
                                     residual == nullptr ? nullptr : residual->data(), out.data()};
  const CudnnTurn turn = cudnn->take_turn(stream.device());
  cudnn->check(cudnn->cudnnSetStream(turn.handle, stream.handle()), "cudnnSetStream");
  plan->run(turn.handle, pointers, workspace == nullptr ? nullptr : workspace->data);
  return true;
}

}  // namespace etcuda
