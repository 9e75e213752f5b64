// The CUDA driver, opened when first needed. The same library works on a machine without one.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "cuda/driver_abi.h"

namespace etcuda {

struct DeviceInfo {
  std::string name;
  int capability = 0;     // 90 for compute capability 9.0
  int shared_memory = 0;  // bytes, the most that a block may ask for
  CUcontext context = nullptr;
};

class Driver {
 public:
  // Null without a usable driver or GPU; unavailable_reason() then says why.
  static Driver* get();
  static const std::string& unavailable_reason();
  // Throws Failure(NotSupported) instead of returning null. `purpose` completes "... needs an NVIDIA GPU".
  static Driver& require(const char* purpose);

#define ETCUDA_DECLARE(name, parameters) CUresult(*name) parameters = nullptr;
  ETCUDA_DRIVER_FUNCTIONS(ETCUDA_DECLARE)
  ETCUDA_OPTIONAL_DRIVER_FUNCTIONS(ETCUDA_DECLARE)
#undef ETCUDA_DECLARE

  int device_count() const { return static_cast<int>(devices_.size()); }
  const DeviceInfo& device(int index) const { return devices_.at(static_cast<size_t>(index)); }

  // Makes the device's primary context current on this thread. Cheap when it is current already.
  void use_device(int index);

  // Throws Failure with the driver's own words.
  void check(CUresult result, const char* what) const;
  std::string describe(CUresult result) const;

 private:
  Driver() = default;
  std::string open();

  std::vector<DeviceInfo> devices_;
  std::mutex mutex_;
};

// The device and stream that this thread's shims work on. Set by the delegate around each call into an image.
struct CudaContext {
  int device = 0;
  CUstream stream = nullptr;
  bool allow_tf32 = false;  // of the method that runs
};
CudaContext& current_cuda();

class CudaScope {
 public:
  CudaScope(int device, CUstream stream);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

 private:
  CudaContext previous_;
};

}  // namespace etcuda
