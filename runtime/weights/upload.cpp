#include "weights/upload.h"

#include <algorithm>
#include <cstring>

#include "core/failure.h"

namespace etcuda {

Uploader::Uploader(Stream& stream) : stream_(stream) {
  Driver::require("copying weights to the GPU").use_device(stream.device());
}

Uploader::~Uploader() {
  Driver* driver = Driver::get();
  const CUresult result = driver->cuStreamSynchronize(stream_.handle());
  if (result != kCudaSuccess)
    report_error("copying weights to the GPU failed with " + driver->describe(result));
  for (Slot& slot : slots_) {
    if (slot.free != nullptr) driver->cuEventDestroy_v2(slot.free);
  }
}

void Uploader::upload(void* destination, const void* source, size_t nbytes) {
  Driver& driver = Driver::require("copying weights to the GPU");
  const auto* from = static_cast<const char*>(source);
  auto* to = static_cast<char*>(destination);
  while (nbytes > 0) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % kSlots;
    if (slot.free == nullptr) {
      driver.check(driver.cuEventCreate(&slot.free, kEventDisableTiming), "cuEventCreate");
      slot.buffer = allocate_pinned_storage(kSlotBytes);
    } else {
      driver.check(driver.cuEventSynchronize(slot.free), "cuEventSynchronize");
    }
    const size_t chunk = std::min(nbytes, kSlotBytes);
    std::memcpy(slot.buffer->data, from, chunk);
    driver.check(driver.cuMemcpyHtoDAsync_v2(reinterpret_cast<CUdeviceptr>(to), slot.buffer->data, chunk,
                                             stream_.handle()),
                 "cuMemcpyHtoDAsync");
    driver.check(driver.cuEventRecord(slot.free, stream_.handle()), "cuEventRecord");
    from += chunk;
    to += chunk;
    nbytes -= chunk;
  }
}

}  // namespace etcuda
