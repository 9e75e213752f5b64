// Where the caching allocators get their memory from: the C library, the driver's pinned memory, the GPU.
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "core/dtype.h"
#include "core/failure.h"
#include "cuda/capture.h"
#include "cuda/driver.h"
#include "memory/allocator.h"
#include "memory/reclaim.h"

namespace etcuda {
namespace {

// A cache line, and what vectorised code wants at most.
constexpr size_t kHostAlignment = 64;
constexpr size_t kDeviceGranularity = 512;

class HostAllocator final : public CachingAllocator {
 public:
  HostAllocator() : CachingAllocator(kHostAlignment) {}

 protected:
  void* system_allocate(size_t nbytes) override {
    // The system promises more than it has and kills whoever takes it at its word.
    static const size_t physical =
        static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* data = nullptr;
    return nbytes <= physical && posix_memalign(&data, kHostAlignment, nbytes) == 0 ? data : nullptr;
  }
  void system_free(void* data) noexcept override { std::free(data); }
  const char* where() const override { return "the host"; }
};

class PinnedAllocator final : public CachingAllocator {
 public:
  PinnedAllocator() : CachingAllocator(4096) {}

 protected:
  void* system_allocate(size_t nbytes) override {
    Driver& driver = Driver::require("pinned memory");
    driver.use_device(current_cuda().device);
    void* data = nullptr;
    return driver.cuMemHostAlloc(&data, nbytes, kHostAllocPortable) == kCudaSuccess ? data : nullptr;
  }
  void system_free(void* data) noexcept override { Driver::get()->cuMemFreeHost(data); }
  const char* where() const override { return "pinned host memory"; }
};

class DeviceAllocator final : public CachingAllocator {
 public:
  explicit DeviceAllocator(int device)
      : CachingAllocator(kDeviceGranularity), device_(device), name_(format("cuda:%d", device)) {}

 protected:
  void* system_allocate(size_t nbytes) override {
    Driver& driver = Driver::require("device memory");
    driver.use_device(device_);
    CUdeviceptr data = 0;
    const CUresult result = driver.cuMemAlloc_v2(&data, nbytes);
    if (result == kCudaOutOfMemory) return nullptr;
    driver.check(result, "cuMemAlloc");
    return reinterpret_cast<void*>(data);
  }
  void system_free(void* data) noexcept override {
    Driver* driver = Driver::get();
    CUresult result = driver->cuCtxSetCurrent(driver->device(device_).context);
    if (result == kCudaSuccess) result = driver->cuMemFree_v2(reinterpret_cast<CUdeviceptr>(data));
    if (result != kCudaSuccess) report_error("cuMemFree failed with " + driver->describe(result));
  }
  void system_synchronize() override {
    Driver& driver = Driver::require("device memory");
    driver.use_device(device_);
    driver.check(driver.cuCtxSynchronize(), "cuCtxSynchronize");
  }
  bool system_reclaim() override { return release_held_memory(device_); }
  bool may_synchronize() const override { return !is_capturing(); }
  std::unique_lock<std::mutex> hold_off_captures() const override { return exclude_captures(); }
  const char* where() const override { return name_.c_str(); }

 private:
  const int device_;
  const std::string name_;
};

// None of these is ever destroyed: tensors may be released while the process exits.
std::mutex& registry_mutex() {
  static auto* mutex = new std::mutex();
  return *mutex;
}

std::vector<CachingAllocator*>& device_registry() {
  static auto* allocators = new std::vector<CachingAllocator*>();
  return *allocators;
}

}  // namespace

CachingAllocator& host_allocator() {
  static auto* allocator = new HostAllocator();
  return *allocator;
}

CachingAllocator& pinned_allocator() {
  static auto* allocator = new PinnedAllocator();
  return *allocator;
}

CachingAllocator& cuda_allocator(int device) {
  if (device < 0 || device >= 64) fail(ErrorCode::InvalidArgument, "CUDA device %d is not sensible.", device);
  const std::lock_guard<std::mutex> lock(registry_mutex());
  auto& allocators = device_registry();
  const auto index = static_cast<size_t>(device);
  if (index >= allocators.size()) allocators.resize(index + 1, nullptr);
  if (allocators[index] == nullptr) allocators[index] = new DeviceAllocator(device);
  return *allocators[index];
}

void for_each_allocator(void (*visit)(int, int, CachingAllocator&, void*), void* argument) {
  visit(kHost, 0, host_allocator(), argument);
  std::vector<CachingAllocator*> devices;
  {
    const std::lock_guard<std::mutex> lock(registry_mutex());
    devices = device_registry();
  }
  for (size_t i = 0; i < devices.size(); ++i) {
    if (devices[i] != nullptr) visit(kCuda, static_cast<int>(i), *devices[i], argument);
  }
}

}  // namespace etcuda
