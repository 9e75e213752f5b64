#include "api.h"

#include <algorithm>
#include <cstring>

#include "core/failure.h"
#include "core/last_error.h"
#include "cuda/cublaslt.h"
#include "cuda/cudnn.h"
#include "cuda/driver.h"
#include "cuda/graph_settings.h"
#include "cuda/pinned.h"
#include "memory/allocator.h"
#include "shims/table.h"
#include "weights/pool.h"
#include "weights/verify.h"

namespace etcuda {

bool backend_is_registered();

namespace {

template <typename Body>
int reported(const Body& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    report_error(error.what());
    return -1;
  }
}

struct StatsSink {
  EtcudaMemoryStats* stats;
  size_t capacity;
  size_t count;
};

}  // namespace
}  // namespace etcuda

using namespace etcuda;  // NOLINT: the functions below are all of this library

int etcuda_is_registered(void) {
  return backend_is_registered() ? 1 : 0;
}

int etcuda_gpu_available(void) {
  return Driver::get() != nullptr ? 1 : 0;
}

const char* etcuda_gpu_unavailable_reason(void) {
  return Driver::unavailable_reason().c_str();
}

const char* const* etcuda_shim_names(size_t* count) {
  return shim_names(count);
}

size_t etcuda_memory_stats(EtcudaMemoryStats* stats, size_t capacity) {
  StatsSink sink{stats, capacity, 0};
  reported([&] {
    for_each_allocator(
        [](int type, int index, CachingAllocator& allocator, void* argument) {
          auto* out = static_cast<StatsSink*>(argument);
          const MemoryStats now = allocator.stats();
          if (out->count < out->capacity) {
            out->stats[out->count] = {type,     index,     now.allocated, now.reserved,
                                      now.peak, now.calls, now.graphs};
          }
          ++out->count;
        },
        &sink);
  });
  return sink.count;
}

int etcuda_empty_cache(void) {
  clear_last_error();
  return reported([] {
    for_each_allocator([](int, int, CachingAllocator& allocator, void*) { allocator.empty_cache(); },
                       nullptr);
  });
}

int etcuda_device_memory(uint64_t* free_bytes, uint64_t* total_bytes, uint64_t* in_use) {
  clear_last_error();
  return reported([&] {
    Driver& driver = Driver::require("its memory");
    driver.use_device(0);
    size_t now_free = 0, total = 0;
    driver.check(driver.cuMemGetInfo_v2(&now_free, &total), "cuMemGetInfo");
    const MemoryStats stats = cuda_allocator(0).stats();
    *free_bytes = now_free + (stats.reserved - stats.allocated);
    *total_bytes = total;
    *in_use = stats.allocated;
  });
}

int etcuda_set_memory_limit(int32_t device_type, int32_t device_index, uint64_t nbytes) {
  clear_last_error();
  return reported([&] {
    CachingAllocator& allocator = device_type == kHost ? host_allocator() : cuda_allocator(device_index);
    allocator.set_limit(nbytes);
  });
}

int etcuda_pin_memory(void* data, uint64_t nbytes) {
  clear_last_error();
  return reported([&] { pin_pages(data, static_cast<size_t>(nbytes)); });
}

int etcuda_unpin_memory(void* data) {
  clear_last_error();
  return reported([&] { unpin_pages(data); });
}

int64_t etcuda_reset_state(void) {
  clear_last_error();
  int64_t count = 0;
  return reported([&] { count = static_cast<int64_t>(reset_all_states()); }) == 0 ? count : -1;
}

size_t etcuda_last_error(char* text, size_t capacity) {
  size_t length = 0;
  reported([&] {
    const std::string message = last_reported_error();
    length = message.size();
    if (capacity == 0) return;
    const size_t copied = std::min(length, capacity - 1);
    std::memcpy(text, message.data(), copied);
    text[copied] = '\0';
  });
  return length;
}

void etcuda_set_verify_weights(int enabled) {
  set_verify_weights(enabled != 0);
}

void etcuda_set_cuda_graphs(int enabled) {
  set_cuda_graphs(enabled != 0);
}

void etcuda_set_cuda_graph_memory_limit(uint64_t nbytes) {
  set_cuda_graph_memory_limit(nbytes);
}

void etcuda_graph_stats(EtcudaGraphStats* stats) {
  const GraphCounts& counts = graph_counts();
  *stats = {counts.live, counts.captures, counts.replays, counts.refusals};
}

void etcuda_set_cublaslt_path(const char* path) {
  reported([&] { CublasLt::set_path(path == nullptr ? "" : path); });
}

void etcuda_set_cudnn_path(const char* path) {
  reported([&] { Cudnn::set_path(path == nullptr ? "" : path); });
}
