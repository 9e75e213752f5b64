// Loading and unloading a delegate.
#include <cinttypes>
#include <unordered_map>

#include "core/failure.h"
#include "cuda/graph_settings.h"
#include "delegate/delegate.h"
#include "delegate/scopes.h"
#include "image/select.h"
#include "shims/lend_handles.h"

namespace etcuda {

Delegate::Delegate(const void* data, size_t nbytes, const NamedDataMap* map, int cuda_device)
    : blob_(read_blob(data, nbytes)) {
  const MachineSpec machine = this_machine(blob_.images, cuda_device);
  const ImageSpec& image = select_image(blob_.images, machine);
  device_ = image.device;
  if (device_ == kCuda) {
    device_index_ = cuda_device;
    stream_ = std::make_unique<Stream>(cuda_device);
    // A wrong value in the environment is an error of loading.
    check_graph_settings();
    if (Capture::is_supported()) {
      graphs_ = std::make_unique<GraphCache>(cuda_device, mutex_);
    } else if (cuda_graphs_enabled()) {
      explain("the driver has no functions for it. Install a newer one.");
    }
  }
  const ImageScope scope(stream_.get(), modules_, blob_.allow_tf32);
  try {
    for (const ImageSpec* each : images_of_parts(blob_.images, image)) load_part(*each);
    check_steps();
    check_constants();
    // Only now, for a damaged description may claim any size.
    loaded_ = load_storages(blob_, map, {device_, device_index_, stream_.get()});
    bind_constants();
  } catch (...) {
    destroy_parts();
    throw;
  }
  // The images' bytes belong to the blob, which the caller frees.
  blob_.images.clear();
}

Delegate::~Delegate() {
  if (parts_.empty()) return;
  try {
    const ImageScope scope(stream_.get(), modules_, blob_.allow_tf32);
    if (stream_) stream_->synchronize();
    // Before the kernels that they launch.
    graphs_.reset();
    destroy_parts();
    // Still inside the scope: the images' static destructors may call shims.
    parts_.clear();
  } catch (const std::exception& error) {
    report_error(std::string("unloading method ") + blob_.method + " failed: " + error.what());
  }
}

void Delegate::destroy_parts() {
  for (Part& part : parts_) {
    if (part.container != nullptr && part.image->aoti().destroy(part.container) != kAotiSuccess) {
      report_error("unloading method " + blob_.method + " failed: " + take_shim_error().message);
    }
    part.container = nullptr;
  }
}

void Delegate::fail_from_image(const Part& part, const char* what, ErrorCode code) {
  ShimError cause = take_shim_error();
  const AotiInterface& aoti = part.image->aoti();
  if (cause.message.empty() && aoti.last_error != nullptr) {
    const char* words = nullptr;
    if (aoti.last_error(&words) == kAotiSuccess && words != nullptr) cause = {code, words};
  }
  if (cause.message.empty()) cause = {code, "the compiled model gave no reason"};
  fail(cause.code, "%s method %s failed: %s", what, blob_.method.c_str(), cause.message.c_str());
}

void Delegate::load_part(const ImageSpec& image) {
  Part& part = parts_.emplace_back();
  part.image = std::make_unique<CodeImage>(image);
  part.image->check_description(blob_.description);
  take_shim_error();
  const std::string device = device_ == kHost ? "cpu" : format("cuda:%d", device_index_);
  ContainerHandle container = nullptr;
  if (part.image->aoti().create(&container, 1, device.c_str(), nullptr) != kAotiSuccess ||
      container == nullptr) {
    fail_from_image(part, "loading", ErrorCode::DelegateInvalidCompatibility);
  }
  part.container = container;
}

void Delegate::check_arity(const Part& part, size_t num_inputs, size_t num_outputs) {
  const AotiInterface& aoti = part.image->aoti();
  size_t inputs = 0;
  size_t outputs = 0;
  if (aoti.num_inputs(part.container, &inputs) != kAotiSuccess ||
      aoti.num_outputs(part.container, &outputs) != kAotiSuccess) {
    fail_from_image(part, "loading", ErrorCode::DelegateInvalidCompatibility);
  }
  if (inputs != num_inputs || outputs != num_outputs) {
    fail(ErrorCode::InvalidProgram,
         "the code image for %s has %zu inputs and %zu outputs, the delegate's description %zu and %zu. "
         "Export the "
         "model again.",
         part.image->target().c_str(), inputs, outputs, num_inputs, num_outputs);
  }
}

void Delegate::check_steps() {
  if (blob_.steps.empty()) {
    check_arity(parts_[0], blob_.inputs.size(), blob_.outputs.size());
    return;
  }
  last_step_.assign(blob_.num_values, 0);
  for (size_t i = 0; i < blob_.steps.size(); ++i) {
    const StepSpec& step = blob_.steps[i];
    check_arity(parts_[step.part], step.inputs.size(), step.outputs.size());
    for (const uint32_t value : step.inputs) last_step_[value] = static_cast<uint32_t>(i);
  }
  for (const uint32_t value : blob_.results) last_step_[value] = UINT32_MAX;
  for (const Part& part : parts_) {
    size_t constants = 0;
    if (part.image->aoti().num_constants(part.container, &constants) != kAotiSuccess) {
      fail_from_image(part, "loading", ErrorCode::DelegateInvalidCompatibility);
    }
    if (constants != 0) {
      fail(
          ErrorCode::InvalidProgram,
          "a part of the code for %s has %zu constants of its own, expected them as inputs. Export the model "
          "again.",
          part.image->target().c_str(), constants);
    }
  }
}

// The image's own list of constants against the description.
void Delegate::check_constants() {
  if (!blob_.steps.empty()) return;
  const Part& part = parts_[0];
  const AotiInterface& aoti = part.image->aoti();
  const auto need = [this, &part](AotiError status) {
    if (status != kAotiSuccess) fail_from_image(part, "loading", ErrorCode::DelegateInvalidCompatibility);
  };
  std::unordered_map<std::string, const ConstantSpec*> described;
  for (const ConstantSpec& constant : blob_.constants) {
    if (!described.emplace(constant.name, &constant).second) {
      fail(ErrorCode::InvalidProgram,
           "the delegate's description has the constant %s twice. Export the model again.",
           constant.name.c_str());
    }
  }
  size_t count = 0;
  need(aoti.num_constants(parts_[0].container, &count));
  std::string missing;
  for (size_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    bool folded = false;
    need(aoti.constant_name(parts_[0].container, i, &name));
    need(aoti.constant_from_folded(parts_[0].container, i, &folded));
    if (folded || name == nullptr) continue;
    const auto it = described.find(name);
    if (it == described.end()) {
      missing += std::string(missing.empty() ? "" : ", ") + name;
      continue;
    }
    check_constant(*it->second, i);
    described.erase(it);
  }
  if (!missing.empty()) {
    fail(ErrorCode::InvalidProgram,
         "the code image wants constants that the delegate's description does not have: %s. Export the model "
         "again.",
         missing.c_str());
  }
  if (!described.empty()) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's description has a constant that the code image does not know: %s. Export the model "
         "again.",
         described.begin()->first.c_str());
  }
}

void Delegate::check_constant(const ConstantSpec& constant, size_t index) {
  const AotiInterface& aoti = parts_[0].image->aoti();
  if (aoti.constant_dtype == nullptr || aoti.constant_nbytes == nullptr) return;
  int32_t dtype = 0;
  size_t nbytes = 0;
  if (aoti.constant_dtype(parts_[0].container, index, &dtype) != kAotiSuccess ||
      aoti.constant_nbytes(parts_[0].container, index, &nbytes) != kAotiSuccess) {
    fail_from_image(parts_[0], "loading", ErrorCode::DelegateInvalidCompatibility);
  }
  const uint64_t rounded = (constant.nbytes + 63) / 64 * 64;
  if (dtype != static_cast<int32_t>(constant.dtype) || (nbytes != constant.nbytes && nbytes != rounded)) {
    fail(ErrorCode::InvalidProgram,
         "constant %s: the code image was made for %zu bytes of dtype %d, the delegate's description has "
         "%" PRIu64 " bytes of dtype %d. Export the model again.",
         constant.fqn.empty() ? constant.name.c_str() : constant.fqn.c_str(), nbytes, dtype, constant.nbytes,
         static_cast<int>(constant.dtype));
  }
}

Delegate::TensorPtr Delegate::view_constant(const ConstantSpec& constant, StoragePtr storage) const {
  return make_view(std::move(storage), static_cast<int64_t>(constant.sizes.size()), constant.sizes.data(),
                   constant.strides.data(), constant.storage_offset, constant.dtype);
}

void Delegate::bind_constants() {
  const AotiInterface& aoti = parts_[0].image->aoti();
  std::vector<ConstantMapEntry> entries;
  for (const ConstantSpec& constant : blob_.constants) {
    constants_.push_back(view_constant(constant, loaded_.storages[constant.storage]));
    entries.push_back({constant.name.c_str(), constants_.back().get()});
  }
  if (entries.empty() || !blob_.steps.empty()) return;
  const LendHandles lend;
  if (aoti.update_constants(parts_[0].container, entries.data(), entries.size(), false, true) !=
      kAotiSuccess) {
    fail_from_image(parts_[0], "loading the weights of", ErrorCode::DelegateInvalidCompatibility);
  }
}

}  // namespace etcuda
