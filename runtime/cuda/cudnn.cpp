#include "cuda/cudnn.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "core/failure.h"
#include "cuda/capture.h"

namespace etcuda {
namespace {

constexpr size_t kLeastVersion = 90000;
constexpr const char* kOff = "off";

std::mutex& path_mutex() {
  static auto* value = new std::mutex();
  return *value;
}

std::string& preferred_path() {
  static auto* path = new std::string();
  return *path;
}

std::string& reason() {
  static auto* value = new std::string();
  return *value;
}

struct DeviceHandle {
  std::mutex mutex;
  CudnnHandle handle = nullptr;
};

DeviceHandle& handle_of(int device) {
  static auto* handles = new std::map<int, DeviceHandle>();
  const std::lock_guard<std::mutex> lock(path_mutex());
  return (*handles)[device];
}

}  // namespace

void Cudnn::set_path(const std::string& path) {
  const std::lock_guard<std::mutex> lock(path_mutex());
  preferred_path() = path;
}

std::string Cudnn::open() {
  std::vector<std::string> candidates;
  const char* named = std::getenv("ETCUDA_CUDNN");
  if (named != nullptr && std::string(named) == kOff) return "ETCUDA_CUDNN is off.";
  is_named_ = named != nullptr && *named != '\0';
  if (is_named_) {
    candidates.emplace_back(named);
  } else {
    {
      const std::lock_guard<std::mutex> lock(path_mutex());
      if (!preferred_path().empty()) candidates.push_back(preferred_path());
    }
    candidates.emplace_back("libcudnn.so.9");
  }
  void* library = nullptr;
  std::string tried;
  for (const std::string& candidate : candidates) {
    library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    const char* error = dlerror();
    tried += format("\n  %s", error == nullptr ? candidate.c_str() : error);
  }
  if (library == nullptr) {
    return "cuDNN was not found. Install it (pip install nvidia-cudnn-cu13, or nvidia-cudnn-cu12), set "
           "ETCUDA_CUDNN to its path, or to 'off' to do without. Tried:" +
           tried;
  }
#define ETCUDA_RESOLVE(result, name, parameters)                        \
  name = reinterpret_cast<result(*) parameters>(dlsym(library, #name)); \
  if (name == nullptr)                                                  \
    return "this cuDNN has no function " #name ": install cuDNN 9, or set ETCUDA_CUDNN to 'off'.";
  ETCUDA_CUDNN_FUNCTIONS(ETCUDA_RESOLVE)
#undef ETCUDA_RESOLVE
  if (cudnnGetVersion() < kLeastVersion) {
    return format(
        "cuDNN: expected version 9 or newer, got %zu. Install nvidia-cudnn-cu13, or set ETCUDA_CUDNN to "
        "'off'.",
        cudnnGetVersion());
  }
  return {};
}

Cudnn* Cudnn::get() {
  static Cudnn* const library = [] {
    auto* opened = new Cudnn();
    reason() = opened->open();
    return opened;
  }();
  if (reason().empty()) return library;
  if (library->is_named_) {
    fail(ErrorCode::NotSupported, "ETCUDA_CUDNN names a library that cannot be used: %s", reason().c_str());
  }
  return nullptr;
}

const std::string& Cudnn::unavailable_reason() {
  return reason();
}

CudnnTurn Cudnn::take_turn(int device) {
  DeviceHandle& found = handle_of(device);
  CudnnTurn turn{std::unique_lock<std::mutex>(found.mutex), found.handle};
  if (turn.handle != nullptr) return turn;
  if (is_capturing()) refuse_in_capture("the first use of cuDNN on a GPU");
  check(cudnnCreate(&found.handle), "cudnnCreate");
  turn.handle = found.handle;
  return turn;
}

std::string Cudnn::describe(CudnnStatus status) const {
  char words[512] = "";
  cudnnGetLastErrorString(words, sizeof(words));
  words[sizeof(words) - 1] = '\0';
  const char* name = cudnnGetErrorString(status);
  return format("%s (%d)%s%s", name == nullptr ? "an unknown status" : name, status,
                words[0] == '\0' ? "" : ": ", words);
}

void Cudnn::check(CudnnStatus status, const char* what) const {
  if (status == kCudnnSuccess) return;
  const bool is_memory = status == kCudnnHostAllocationFailed || status == kCudnnDeviceAllocationFailed;
  const bool is_unsupported = status / kCudnnStatusCategory == kCudnnNotSupported / kCudnnStatusCategory;
  const ErrorCode code = is_memory ? ErrorCode::MemoryAllocationFailed
                                   : (is_unsupported ? ErrorCode::NotSupported : ErrorCode::Internal);
  fail(code, "the cuDNN call %s failed with %s.", what, describe(status).c_str());
}

CudnnObject::CudnnObject(Cudnn& cudnn, int kind) : cudnn_(&cudnn) {
  cudnn.check(cudnn.cudnnBackendCreateDescriptor(kind, &descriptor_), "cudnnBackendCreateDescriptor");
}

CudnnObject::~CudnnObject() {
  if (descriptor_ != nullptr) cudnn_->cudnnBackendDestroyDescriptor(descriptor_);
}

CudnnObject::CudnnObject(CudnnObject&& other) noexcept
    : cudnn_(other.cudnn_), descriptor_(std::exchange(other.descriptor_, nullptr)) {}

CudnnStatus CudnnObject::try_set(int attribute, int type, int64_t count, const void* values) const {
  return cudnn_->cudnnBackendSetAttribute(descriptor_, attribute, type, count, values);
}

void CudnnObject::set_list(int attribute, int type, int64_t count, const void* values) const {
  cudnn_->check(try_set(attribute, type, count, values), "cudnnBackendSetAttribute");
}

void CudnnObject::set_object(int attribute, const CudnnObject& value) const {
  set(attribute, kCudnnTypeDescriptor, value.descriptor_);
}

int64_t CudnnObject::get_list(int attribute, int type, int64_t capacity, void* values) const {
  int64_t count = 0;
  cudnn_->check(cudnn_->cudnnBackendGetAttribute(descriptor_, attribute, type, capacity, &count, values),
                "cudnnBackendGetAttribute");
  return count < capacity ? count : capacity;
}

void CudnnObject::finish() const {
  cudnn_->check(finalize(), "cudnnBackendFinalize");
}

}  // namespace etcuda
