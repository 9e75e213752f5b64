// A call of a delegate whose code is in several parts, some of which are called many times.
#include "core/failure.h"
#include "cuda/copy.h"
#include "delegate/delegate.h"

namespace etcuda {
namespace {

// What compiled kernels assume of the addresses of their arguments.
constexpr size_t kDeviceAlignment = 16;

}  // namespace

// Each part sees the values' own memory: nothing is copied, and what it writes to state stays there.
std::vector<Delegate::TensorPtr> Delegate::run_steps(std::vector<TensorPtr> inputs) {
  const size_t num_inputs = blob_.inputs.size();
  const size_t num_kept = num_inputs + constants_.size();
  std::vector<TensorPtr> values(blob_.num_values);
  for (size_t i = 0; i < inputs.size(); ++i) values[i] = std::move(inputs[i]);
  // Another view, for the code takes what it is given.
  const auto view = [&](uint32_t value) {
    const bool is_constant = value >= num_inputs && value < num_kept;
    const Tensor* tensor = is_constant ? constants_[value - num_inputs].get() : values[value].get();
    if (tensor == nullptr) {
      fail(ErrorCode::Internal,
           "method %s: a step reads value %u, which no step gave. Export the model again.",
           blob_.method.c_str(), value);
    }
    return std::make_unique<Tensor>(*tensor);
  };
  for (size_t i = 0; i < blob_.steps.size(); ++i) {
    const StepSpec& step = blob_.steps[i];
    std::vector<TensorPtr> arguments;
    arguments.reserve(step.inputs.size());
    for (const uint32_t value : step.inputs) arguments.push_back(view(value));
    // So that the code frees it as soon as it has read it.
    for (const uint32_t value : step.inputs) {
      if (last_step_[value] == i) values[value].reset();
    }
    std::vector<TensorPtr> made = run_part(parts_[step.part], std::move(arguments), step.outputs.size());
    for (size_t j = 0; j < made.size(); ++j) {
      const uint32_t value = step.outputs[j];
      if (value == StepSpec::kDropped) continue;
      if (made[j] == nullptr) {
        fail(ErrorCode::Internal, "method %s: step %zu gave no value %u. Export the model again.",
             blob_.method.c_str(), i, value);
      }
      values[value] = aligned(std::move(made[j]));
    }
  }
  std::vector<TensorPtr> outputs;
  outputs.reserve(blob_.results.size());
  for (const uint32_t value : blob_.results) outputs.push_back(view(value));
  return outputs;
}

Delegate::TensorPtr Delegate::aligned(TensorPtr value) {
  const bool fits = reinterpret_cast<uintptr_t>(value->data()) % kDeviceAlignment == 0;
  if (fits || value->device_type() != kCuda) return value;
  auto copy = make_empty(value->rank, value->sizes.data(), value->strides.data(), value->dtype,
                         value->device_type(), value->device_index());
  copy_tensor(*copy, *value);
  return copy;
}

}  // namespace etcuda
