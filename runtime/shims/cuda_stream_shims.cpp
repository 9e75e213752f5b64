// Device and stream guards, and raw device memory.
#include <mutex>
#include <unordered_map>

#include "cuda/capture.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

struct Guard {
  CudaContext previous;
};

void switch_to(int32_t device, CUstream stream) {
  CudaContext& context = current_cuda();
  const int index = device < 0 ? context.device : device;
  if (index != context.device) Driver::require("a device guard").use_device(index);
  context.device = index;
  context.stream = stream;
}

AotiError delete_guard(Guard* guard) {
  return guarded([&] {
    if (guard == nullptr) return;
    const CudaContext previous = guard->previous;
    delete guard;
    const bool moved = previous.device != current_cuda().device;
    current_cuda() = previous;
    if (moved) Driver::require("a device guard").use_device(previous.device);
  });
}

AotiError create_device_guard(int32_t device, Guard** result) {
  return guarded([&] {
    auto guard = std::make_unique<Guard>(Guard{current_cuda()});
    const bool stays = device < 0 || device == current_cuda().device;
    switch_to(device, stays ? current_cuda().stream : nullptr);
    *result = guard.release();
  });
}

AotiError set_guard_index(Guard*, int32_t device) {
  return guarded([&] {
    const bool stays = device < 0 || device == current_cuda().device;
    switch_to(device, stays ? current_cuda().stream : nullptr);
  });
}

AotiError create_stream_guard(void* stream, int32_t device, Guard** result) {
  return guarded([&] {
    auto guard = std::make_unique<Guard>(Guard{current_cuda()});
    switch_to(device, static_cast<CUstream>(stream));
    *result = guard.release();
  });
}

AotiError get_current_stream(int32_t, void** result) {
  *result = current_cuda().stream;
  return kAotiSuccess;
}

AotiError get_current_device_index(int32_t* result) {
  *result = current_cuda().device;
  return kAotiSuccess;
}

struct RawBlocks {
  std::mutex mutex;
  std::unordered_map<void*, std::pair<Block, int>> blocks;
};

RawBlocks& raw_blocks() {
  static auto* blocks = new RawBlocks();
  return *blocks;
}

AotiError raw_alloc(uint64_t nbytes, void** result) {
  return guarded([&] {
    refuse_in_capture("device memory that the model manages itself");
    const int device = current_cuda().device;
    // May outlive the stream.
    const Block block = cuda_allocator(device).allocate(nbytes, nullptr);
    RawBlocks& all = raw_blocks();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (block.data != nullptr) all.blocks[block.data] = {block, device};
    *result = block.data;
  });
}

AotiError raw_delete(void* data) {
  return guarded([&] {
    if (data == nullptr) return;
    refuse_in_capture("device memory that the model manages itself");
    RawBlocks& all = raw_blocks();
    std::pair<Block, int> found;
    {
      const std::lock_guard<std::mutex> lock(all.mutex);
      const auto it = all.blocks.find(data);
      if (it == all.blocks.end())
        fail(ErrorCode::InvalidArgument, "device memory is freed that was not allocated.");
      found = it->second;
      all.blocks.erase(it);
    }
    // Whoever takes the block next must not meet work that still uses it.
    Driver& driver = Driver::require("device memory");
    const auto no_captures = exclude_captures();
    driver.check(driver.cuCtxSynchronize(), "cuCtxSynchronize");
    cuda_allocator(found.second).deallocate(found.first);
  });
}

}  // namespace

ShimList cuda_stream_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_create_device_guard", create_device_guard),
      shim("aoti_torch_delete_device_guard", delete_guard),
      shim("aoti_torch_device_guard_set_index", set_guard_index),
      shim("aoti_torch_create_cuda_guard", create_device_guard),
      shim("aoti_torch_delete_cuda_guard", delete_guard),
      shim("aoti_torch_cuda_guard_set_index", set_guard_index),
      shim("aoti_torch_create_cuda_stream_guard", create_stream_guard),
      shim("aoti_torch_delete_cuda_stream_guard", delete_guard),
      shim("aoti_torch_get_current_cuda_stream", get_current_stream),
      shim("aoti_torch_get_current_device_index", get_current_device_index),
      shim("aoti_torch_cuda_caching_allocator_raw_alloc", raw_alloc),
      shim("aoti_torch_cuda_caching_allocator_raw_delete", raw_delete),
  };
  return shim_list(shims);
}

}  // namespace etcuda
