#include "cuda/stream.h"

#include "core/failure.h"
#include "memory/tensor.h"

namespace etcuda {
namespace {

constexpr size_t kLeastWorkspace = size_t{1} << 20;

thread_local Stream* current = nullptr;

}  // namespace

StreamOrder* current_order() {
  return current == nullptr ? nullptr : current->order();
}

Stream& require_current_stream() {
  if (current == nullptr) fail(ErrorCode::InvalidState, "no method runs on this thread's GPU stream.");
  return *current;
}

Stream::Stream(int device) : device_(device) {
  Driver& driver = Driver::require("a CUDA stream");
  driver.use_device(device);
  driver.check(driver.cuStreamCreate(&handle_, kStreamNonBlocking), "cuStreamCreate");
}

Stream::~Stream() {
  Driver* driver = Driver::get();
  CUresult result = driver->cuStreamSynchronize(handle_);
  cuda_allocator(device_).retire(&order_);
  if (result == kCudaSuccess) result = driver->cuStreamDestroy_v2(handle_);
  if (result != kCudaSuccess) report_error("closing a CUDA stream failed with " + driver->describe(result));
}

void Stream::synchronize() {
  Driver& driver = Driver::require("a CUDA stream");
  driver.check(driver.cuStreamSynchronize(handle_), "cuStreamSynchronize");
  order_.mark_synchronized();
}

void* Stream::workspace(size_t nbytes) {
  if (nbytes == 0) return nullptr;
  if (!workspace_ || workspace_->nbytes < nbytes) {
    size_t size = kLeastWorkspace;
    while (size < nbytes) size *= 2;
    const StoragePtr grown = allocate_persistent_storage(size, kCuda, device_);
    // Graphs that were captured have the addresses of smaller ones, which live as long; by doubling they are
    // less than the largest together.
    workspace_ = StoragePtr(grown.get(), [grown, smaller = std::move(workspace_)](Storage*) {});
  }
  return workspace_->data;
}

StreamScope::StreamScope(Stream& stream) : cuda_(stream.device(), stream.handle()), previous_(current) {
  current = &stream;
}

StreamScope::~StreamScope() {
  current = previous_;
}

}  // namespace etcuda
