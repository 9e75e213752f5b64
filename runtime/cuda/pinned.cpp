#include "cuda/pinned.h"

#include <unistd.h>

#include "core/failure.h"
#include "cuda/driver.h"

namespace etcuda {
namespace {

CUdeviceptr address_of(const void* data) {
  return reinterpret_cast<CUdeviceptr>(data);
}

uintptr_t page_size() {
  static const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return size;
}

void* start_of_page(void* data) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(data) / page_size() * page_size());
}

}  // namespace

uint64_t pinned_allocation(const void* data, size_t nbytes) {
  const Driver& driver = Driver::require("pinned memory");
  unsigned type = 0;
  unsigned long long first = 0, last = 0;
  if (nbytes == 0 ||
      driver.cuPointerGetAttribute(&type, kPointerMemoryType, address_of(data)) != kCudaSuccess ||
      type != kMemoryTypeHost ||
      driver.cuPointerGetAttribute(&first, kPointerBufferId, address_of(data)) != kCudaSuccess ||
      driver.cuPointerGetAttribute(&last, kPointerBufferId, address_of(data) + nbytes - 1) != kCudaSuccess) {
    return 0;
  }
  return first == last ? first : 0;
}

void pin_pages(void* data, size_t nbytes) {
  Driver& driver = Driver::require("pinning memory");
  if (driver.cuMemHostRegister_v2 == nullptr || driver.cuMemHostUnregister == nullptr) {
    fail(
        ErrorCode::NotSupported,
        "the driver has no function to pin memory that is there. Install a newer one, or leave it as it is.");
  }
  if (data == nullptr || nbytes == 0) {
    fail(ErrorCode::InvalidArgument, "memory to pin: expected an address and 1 byte or more, got %p and %zu.",
         data, nbytes);
  }
  driver.use_device(0);
  char* start = static_cast<char*>(start_of_page(data));
  const auto length = static_cast<size_t>(static_cast<char*>(data) + nbytes - start);
  const size_t pages = (length + page_size() - 1) / page_size() * page_size();
  driver.check(driver.cuMemHostRegister_v2(start, pages, kHostRegisterPortable), "cuMemHostRegister");
}

void unpin_pages(void* data) {
  Driver& driver = Driver::require("unpinning memory");
  if (driver.cuMemHostUnregister == nullptr) return;
  driver.use_device(0);
  driver.check(driver.cuMemHostUnregister(start_of_page(data)), "cuMemHostUnregister");
}

}  // namespace etcuda
