#include "delegate/sizes.h"

#include <algorithm>
#include <cinttypes>

#include "core/failure.h"

namespace etcuda {
namespace {

constexpr const char* kAdvice =
    "Pass tensors whose sizes fit together, or export the model again for other sizes.";

}  // namespace

void CallSizes::compute(const BlobSpec& blob, const std::vector<ArgumentView>& inputs) {
  blob_ = &blob;
  inputs_ = &inputs;
  values_.clear();
  for (const SizeSpec& size : blob.sizes) values_.push_back(run(size));
  for (size_t i = 0; i < inputs.size(); ++i) check_input(i);
  for (const SizeSpec& condition : blob.conditions) check_condition(condition);
}

int64_t CallSizes::input_size(size_t index, size_t dim) const {
  return (*inputs_)[index].sizes[dim];
}

int64_t CallSizes::run(const SizeSpec& spec) const {
  int64_t result = 0;
  const SizeError error = run_steps(
      spec.steps, [&](size_t index, size_t dim) { return input_size(index, dim); },
      [&](size_t position) { return values_[position]; }, &result);
  if (error != SizeError::kNone) fail_to_compute(spec, error);
  return result;
}

void CallSizes::fail_to_compute(const SizeSpec& spec, SizeError error) const {
  // Only a size that is solved from a dimension divides without a rest: the first that it reads.
  const SizeStep& first = spec.steps.front();
  if (error == SizeError::kRest && first.op == SizeOp::kInput) {
    const auto index = static_cast<size_t>(first.value);
    const ValueSpec& input = blob_->inputs[index];
    const int32_t size = input.dims[first.dim].size;
    fail(ErrorCode::InvalidArgument,
         "input %zu (%s): dimension %u has size %" PRId64
         ", expected one that is %s for a whole number %s. %s",
         index, input.name.c_str(), first.dim, input_size(index, first.dim),
         size < 0 ? "given" : blob_->sizes[static_cast<size_t>(size)].text.c_str(), spec.text.c_str(),
         kAdvice);
  }
  fail(ErrorCode::InvalidArgument, "%s cannot be computed from the sizes of the inputs: %s; %s. %s",
       spec.text.c_str(),
       error == SizeError::kOverflow      ? "the number is too large"
       : error == SizeError::kZeroDivisor ? "it would be divided by 0"
                                          : "it is no whole number",
       sources(spec).c_str(), kAdvice);
}

void CallSizes::check_input(size_t index) const {
  const ValueSpec& spec = blob_->inputs[index];
  for (size_t dim = 0; dim < spec.dims.size(); ++dim) {
    if (spec.dims[dim].size < 0) continue;
    const auto position = static_cast<size_t>(spec.dims[dim].size);
    const SizeSpec& size = blob_->sizes[position];
    if (input_size(index, dim) == values_[position]) continue;
    fail(ErrorCode::InvalidArgument,
         "input %zu (%s): dimension %zu has size %" PRId64 ", expected %" PRId64
         ": the model was exported with %s "
         "there, and %s. %s",
         index, spec.name.c_str(), dim, input_size(index, dim), values_[position], size.text.c_str(),
         sources(size).c_str(), kAdvice);
  }
}

void CallSizes::check_condition(const SizeSpec& condition) const {
  if (run(condition) != 0) return;
  fail(ErrorCode::InvalidArgument, "the sizes of the inputs: expected %s, as the model was exported; %s. %s",
       condition.text.c_str(), sources(condition).c_str(), kAdvice);
}

void CallSizes::check_output(size_t index, const int64_t* sizes) const {
  const ValueSpec& spec = blob_->outputs[index];
  for (size_t dim = 0; dim < spec.dims.size(); ++dim) {
    if (spec.dims[dim].size < 0) continue;
    const auto position = static_cast<size_t>(spec.dims[dim].size);
    if (sizes[dim] == values_[position]) continue;
    fail(ErrorCode::Internal,
         "output %zu (%s): dimension %zu has size %" PRId64 ", expected %" PRId64
         ", which is %s. The compiled model "
         "does not do what its description says: export it again.",
         index, spec.name.c_str(), dim, sizes[dim], values_[position], blob_->sizes[position].text.c_str());
  }
}

void CallSizes::collect(const SizeSpec& spec, std::vector<bool>* seen, std::vector<SizeStep>* found) const {
  for (const SizeStep& step : spec.steps) {
    const auto position = static_cast<size_t>(step.value);
    if (step.op == SizeOp::kSize && !(*seen)[position]) {
      (*seen)[position] = true;
      collect(blob_->sizes[position], seen, found);
    }
    const auto same = [&](const SizeStep& other) {
      return other.value == step.value && other.dim == step.dim;
    };
    if (step.op == SizeOp::kInput && std::none_of(found->begin(), found->end(), same)) found->push_back(step);
  }
}

// The dimensions that a size is computed from, as they were exported and as they are.
std::string CallSizes::sources(const SizeSpec& spec) const {
  std::vector<SizeStep> found;
  std::vector<bool> seen(blob_->sizes.size());
  collect(spec, &seen, &found);
  std::string text;
  for (const SizeStep& step : found) {
    const auto index = static_cast<size_t>(step.value);
    const ValueSpec& input = blob_->inputs[index];
    const int32_t size = input.dims[step.dim].size;
    const std::string exported = size < 0 ? "" : blob_->sizes[static_cast<size_t>(size)].text + " = ";
    text += format("%s%s%" PRId64 " in dimension %u of input %zu (%s)", text.empty() ? "" : ", ",
                   exported.c_str(), input_size(index, step.dim), step.dim, index, input.name.c_str());
  }
  return text.empty() ? "no input has a part in it" : text;
}

}  // namespace etcuda
