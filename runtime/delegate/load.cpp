// Loading and unloading a delegate.
#include <cinttypes>
#include <unordered_map>

#include "core/failure.h"
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
  }
  const ImageScope scope(stream_.get(), modules_, blob_.allow_tf32);
  image_ = std::make_unique<CodeImage>(image);
  image_->check_description(blob_.description);
  try {
    create_container(image);
    check_constants();
    // Only now, for a damaged description may claim any size.
    loaded_ = load_storages(blob_, map, {device_, device_index_, stream_.get()});
    bind_constants();
  } catch (...) {
    if (container_ != nullptr) image_->aoti().destroy(container_);
    throw;
  }
  // The images' bytes belong to the blob, which the caller frees.
  blob_.images.clear();
}

Delegate::~Delegate() {
  if (container_ == nullptr) return;
  try {
    const ImageScope scope(stream_.get(), modules_, blob_.allow_tf32);
    if (stream_) stream_->synchronize();
    if (image_->aoti().destroy(container_) != kAotiSuccess) {
      report_error("unloading method " + blob_.method + " failed: " + take_shim_error().message);
    }
    // Still inside the scope: the image's static destructors may call shims.
    image_.reset();
  } catch (const std::exception& error) {
    report_error(std::string("unloading method ") + blob_.method + " failed: " + error.what());
  }
}

void Delegate::fail_from_image(const char* what, ErrorCode code) {
  ShimError cause = take_shim_error();
  if (cause.message.empty() && image_->aoti().last_error != nullptr) {
    const char* words = nullptr;
    if (image_->aoti().last_error(&words) == kAotiSuccess && words != nullptr) cause = {code, words};
  }
  if (cause.message.empty()) cause = {code, "the compiled model gave no reason"};
  fail(cause.code, "%s method %s failed: %s", what, blob_.method.c_str(), cause.message.c_str());
}

void Delegate::create_container(const ImageSpec& image) {
  const AotiInterface& aoti = image_->aoti();
  take_shim_error();
  const std::string device = device_ == kHost ? "cpu" : format("cuda:%d", device_index_);
  if (aoti.create(&container_, 1, device.c_str(), nullptr) != kAotiSuccess || container_ == nullptr) {
    container_ = nullptr;
    fail_from_image("loading", ErrorCode::DelegateInvalidCompatibility);
  }
  size_t inputs = 0;
  size_t outputs = 0;
  if (aoti.num_inputs(container_, &inputs) != kAotiSuccess ||
      aoti.num_outputs(container_, &outputs) != kAotiSuccess) {
    fail_from_image("loading", ErrorCode::DelegateInvalidCompatibility);
  }
  if (inputs != blob_.inputs.size() || outputs != blob_.outputs.size()) {
    fail(ErrorCode::InvalidProgram,
         "the code image for %s has %zu inputs and %zu outputs, the delegate's description %zu and %zu. "
         "Export the "
         "model again.",
         image.target.c_str(), inputs, outputs, blob_.inputs.size(), blob_.outputs.size());
  }
}

// The image's own list of constants against the description.
void Delegate::check_constants() {
  const AotiInterface& aoti = image_->aoti();
  const auto need = [this](AotiError status) {
    if (status != kAotiSuccess) fail_from_image("loading", ErrorCode::DelegateInvalidCompatibility);
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
  need(aoti.num_constants(container_, &count));
  std::string missing;
  for (size_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    bool folded = false;
    need(aoti.constant_name(container_, i, &name));
    need(aoti.constant_from_folded(container_, i, &folded));
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
  const AotiInterface& aoti = image_->aoti();
  if (aoti.constant_dtype == nullptr || aoti.constant_nbytes == nullptr) return;
  int32_t dtype = 0;
  size_t nbytes = 0;
  if (aoti.constant_dtype(container_, index, &dtype) != kAotiSuccess ||
      aoti.constant_nbytes(container_, index, &nbytes) != kAotiSuccess) {
    fail_from_image("loading", ErrorCode::DelegateInvalidCompatibility);
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
  const AotiInterface& aoti = image_->aoti();
  std::vector<ConstantMapEntry> entries;
  for (const ConstantSpec& constant : blob_.constants) {
    constants_.push_back(view_constant(constant, loaded_.storages[constant.storage]));
    entries.push_back({constant.name.c_str(), constants_.back().get()});
  }
  if (entries.empty()) return;
  const LendHandles lend;
  if (aoti.update_constants(container_, entries.data(), entries.size(), false, true) != kAotiSuccess) {
    fail_from_image("loading the weights of", ErrorCode::DelegateInvalidCompatibility);
  }
}

}  // namespace etcuda
