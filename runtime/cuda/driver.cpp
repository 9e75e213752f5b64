#include "cuda/driver.h"

#include <dlfcn.h>

#include "core/failure.h"

namespace etcuda {
namespace {

struct Opened {
  Driver* driver = nullptr;
  std::string reason;
};

thread_local CudaContext context;

}  // namespace

std::string Driver::open() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    return format("the NVIDIA driver's library libcuda.so.1 could not be opened (%s)",
                  error == nullptr ? "" : error);
  }
#define ETCUDA_RESOLVE(name, parameters)                                  \
  name = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #name)); \
  if (name == nullptr)                                                    \
    return "the NVIDIA driver is too old: it has no function " #name "; install a newer one";
  ETCUDA_DRIVER_FUNCTIONS(ETCUDA_RESOLVE)
#undef ETCUDA_RESOLVE
#define ETCUDA_RESOLVE(name, parameters) \
  name = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #name));
  ETCUDA_OPTIONAL_DRIVER_FUNCTIONS(ETCUDA_RESOLVE)
#undef ETCUDA_RESOLVE
  const CUresult status = cuInit(0);
  if (status != kCudaSuccess) return "the NVIDIA driver did not start: " + describe(status);
  int count = 0;
  if (cuDeviceGetCount(&count) != kCudaSuccess || count <= 0) return "the NVIDIA driver reports no GPU";
  for (int index = 0; index < count; ++index) {
    DeviceInfo info;
    CUdevice device = 0;
    int major = 0;
    int minor = 0;
    char name[256] = {};
    check(cuDeviceGet(&device, index), "cuDeviceGet");
    check(cuDeviceGetName(name, sizeof(name) - 1, device), "cuDeviceGetName");
    check(cuDeviceGetAttribute(&major, kCapabilityMajor, device), "cuDeviceGetAttribute");
    check(cuDeviceGetAttribute(&minor, kCapabilityMinor, device), "cuDeviceGetAttribute");
    check(cuDeviceGetAttribute(&info.shared_memory, kSharedMemoryPerBlockOptin, device),
          "cuDeviceGetAttribute");
    info.name = name;
    info.capability = major * 10 + minor;
    devices_.push_back(info);
  }
  return {};
}

namespace {

const Opened& opened(Driver* (*create)(std::string*)) {
  static const Opened result = [create] {
    Opened value;
    value.driver = create(&value.reason);
    return value;
  }();
  return result;
}

}  // namespace

Driver* Driver::get() {
  return opened([](std::string* reason) -> Driver* {
           // Never freed: images may still be unloading while the process exits.
           auto* driver = new Driver();
           try {
             *reason = driver->open();
           } catch (const std::exception& error) {
             *reason = error.what();
           }
           if (reason->empty()) return driver;
           delete driver;
           return nullptr;
         })
      .driver;
}

const std::string& Driver::unavailable_reason() {
  get();
  return opened(nullptr).reason;
}

Driver& Driver::require(const char* purpose) {
  Driver* driver = get();
  if (driver == nullptr) {
    fail(ErrorCode::NotSupported,
         "%s needs an NVIDIA GPU, but %s. Run on a machine with a GPU and its driver, or export the model "
         "with target=\"host\".",
         purpose, unavailable_reason().c_str());
  }
  return *driver;
}

void Driver::use_device(int index) {
  if (index < 0 || index >= device_count()) {
    fail(ErrorCode::InvalidArgument,
         "CUDA device %d does not exist: this machine has %d. Choose one of those.", index, device_count());
  }
  DeviceInfo& info = devices_[static_cast<size_t>(index)];
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (info.context == nullptr) {
      // Kept until the process ends, as every CUDA library does.
      CUdevice device = 0;
      check(cuDeviceGet(&device, index), "cuDeviceGet");
      check(cuDevicePrimaryCtxRetain(&info.context, device), "cuDevicePrimaryCtxRetain");
    }
  }
  check(cuCtxSetCurrent(info.context), "cuCtxSetCurrent");
}

std::string Driver::describe(CUresult result) const {
  const char* name = nullptr;
  const char* words = nullptr;
  if (cuGetErrorName(result, &name) != kCudaSuccess || name == nullptr) name = "unknown error";
  if (cuGetErrorString(result, &words) != kCudaSuccess || words == nullptr) words = "no description";
  return format("%s (%d): %s", name, result, words);
}

void Driver::check(CUresult result, const char* what) const {
  if (result == kCudaSuccess) return;
  const ErrorCode code = result == kCudaOutOfMemory ? ErrorCode::MemoryAllocationFailed : ErrorCode::Internal;
  fail(code, "the CUDA call %s failed with %s.", what, describe(result).c_str());
}

CudaContext& current_cuda() {
  return context;
}

CudaScope::CudaScope(int device, CUstream stream) : previous_(context) {
  Driver::require("this call").use_device(device);
  context = {device, stream, false};
}

CudaScope::~CudaScope() {
  context = previous_;
}

}  // namespace etcuda
