#include "blob/steps.h"

#include <algorithm>

#include "blob/header.h"
#include "core/failure.h"

namespace etcuda {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  fail(ErrorCode::InvalidProgram, "the delegate's steps are inconsistent: %s. Export the model again.",
       what.c_str());
}

std::vector<uint32_t> numbers(const flatbuffers::Vector<uint32_t>* from) {
  return from == nullptr ? std::vector<uint32_t>() : std::vector<uint32_t>(from->begin(), from->end());
}

StepSpec read_step(const schema::Step* step, size_t index, uint32_t num_parts, size_t* num_values) {
  if (step == nullptr) refuse(format("step %zu is empty", index));
  StepSpec spec{step->part(), numbers(step->inputs()), numbers(step->outputs())};
  if (spec.part >= num_parts) refuse(format("step %zu calls part %u of %u", index, spec.part, num_parts));
  for (const uint32_t value : spec.inputs) {
    if (value >= *num_values) refuse(format("step %zu reads value %u of %zu", index, value, *num_values));
  }
  for (const uint32_t value : spec.outputs) {
    if (value == StepSpec::kDropped) continue;
    if (value != *num_values)
      refuse(format("step %zu makes value %u, expected %zu", index, value, *num_values));
    ++*num_values;
  }
  return spec;
}

}  // namespace

void read_steps(const schema::Delegate& root, BlobSpec* spec) {
  const size_t count = root.steps() == nullptr ? 0 : root.steps()->size();
  uint32_t last_part = 0;
  for (const ImageSpec& image : spec->images) last_part = std::max(last_part, image.part);
  spec->results = numbers(root.results());
  if ((count != 0) != (root.format_version() == kFormatVersionOfSteps))
    refuse(format("there are %zu steps in a description of format %u", count, root.format_version()));
  if (count == 0) {
    if (last_part != 0) refuse("there are several parts and no steps");
    if (!spec->results.empty()) refuse("there are results without steps");
    return;
  }
  if (last_part >= spec->images.size())
    refuse(format("there are %zu code images and a part %u", spec->images.size(), last_part));
  spec->num_values = spec->inputs.size() + spec->constants.size();
  for (size_t i = 0; i < count; ++i) {
    const auto* step = root.steps()->Get(static_cast<flatbuffers::uoffset_t>(i));
    spec->steps.push_back(read_step(step, i, last_part + 1, &spec->num_values));
  }
  if (spec->results.size() != spec->outputs.size())
    refuse(format("there are %zu outputs and %zu results", spec->outputs.size(), spec->results.size()));
  for (const uint32_t value : spec->results) {
    if (value >= spec->num_values) refuse(format("value %u of %zu is a result", value, spec->num_values));
  }
}

}  // namespace etcuda
