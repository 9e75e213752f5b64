// A libcuda.so.1 for machines without a GPU: device memory is host memory whose address the fake keeps apart,
// copies and kernels run at once. It checks what a real driver would not forgive: copies that leave an
// allocation, double frees, use of a stream or module that is gone. ETCUDA_FAKE_CUDA_BYTES bounds device
// memory.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "fake_cuda_graphs.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fake_cuda::graph_launches;
using fake_cuda::live_graphs;
using fake_cuda::recorded;
using fake_cuda::spoils_any_capture;
using fake_cuda::spoils_capture;
using Result = int;
using Address = unsigned long long;

constexpr Result kCaptureUnsupported = 900;  // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

struct Fake {
  std::mutex mutex;
  std::map<Address, size_t> device;
  std::map<Address, size_t> pinned;
  std::set<void*> streams, events, modules;
  size_t used = 0;
  size_t launches = 0;
  size_t early_launches = 0;
};

Fake& fake() {
  static auto* value = new Fake();
  return *value;
}

thread_local void* current_context = nullptr;

[[noreturn]] void misuse(const char* what) {
  std::fprintf(stderr, "fake CUDA driver: %s\n", what);
  std::abort();
}

size_t capacity() {
  const char* text = std::getenv("ETCUDA_FAKE_CUDA_BYTES");
  return text == nullptr ? size_t{1} << 30 : static_cast<size_t>(std::strtoull(text, nullptr, 10));
}

bool inside(const std::map<Address, size_t>& blocks, Address address, size_t nbytes) {
  auto it = blocks.upper_bound(address);
  if (it == blocks.begin()) return false;
  --it;
  return address >= it->first && address + nbytes <= it->first + it->second;
}

void need_device(Address address, size_t nbytes, const char* what) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (!inside(fake().device, address, nbytes)) misuse(what);
}

void need_host(const void* address, size_t nbytes, const char* what) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (inside(fake().device, reinterpret_cast<Address>(address), nbytes)) misuse(what);
}

void need_context() {
  if (current_context == nullptr) misuse("no context is current");
}

struct alignas(16) Kernel {
  char code;
};
Kernel kernels[2];

void need_kernel(const void* function) {
  if (function != &kernels[0] && function != &kernels[1]) misuse("the kernel does not exist");
}

void need_stream(void* stream) {
  need_context();
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (stream != nullptr && fake().streams.count(stream) == 0) misuse("the stream does not exist");
}

void* make(std::set<void*>& set) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  void* made = std::malloc(1);
  set.insert(made);
  return made;
}

void destroy(std::set<void*>& set, void* object, const char* what) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (set.erase(object) == 0) misuse(what);
  std::free(object);
}

void* pointer(Address address) {
  return reinterpret_cast<void*>(address);
}

}  // namespace

// What a test may ask for: live allocations, bytes, streams, events, modules, launches, launches
// of kernels that need not wait for the one in front, live graphs, launches of graphs.
EXPORT void fake_cuda_counts(size_t* counts) {
  Fake& f = fake();
  const std::lock_guard<std::mutex> lock(f.mutex);
  const size_t values[9] = {f.device.size(),  f.used,           f.streams.size(),
                            f.events.size(),  f.modules.size(), f.launches,
                            f.early_launches, live_graphs(),    graph_launches()};
  std::memcpy(counts, values, sizeof(values));
}

EXPORT Result cuInit(unsigned) {
  return std::getenv("ETCUDA_FAKE_CUDA_BROKEN") == nullptr ? 0 : 999;
}
EXPORT Result cuDriverGetVersion(int* version) {
  return *version = 13000, 0;
}
EXPORT Result cuDeviceGetCount(int* count) {
  return *count = 2, 0;
}
EXPORT Result cuDeviceGet(int* device, int index) {
  return *device = index, index < 2 ? 0 : 101;
}
EXPORT Result cuDeviceGetName(char* name, int length, int) {
  std::snprintf(name, static_cast<size_t>(length), "Fake GPU");
  return 0;
}
EXPORT Result cuDeviceGetAttribute(int* value, int attribute, int) {
  const char* text = std::getenv("ETCUDA_FAKE_CUDA_CAPABILITY");
  const int capability = text == nullptr ? 90 : std::atoi(text);
  switch (attribute) {
    case 75:
      return *value = capability / 10, 0;
    case 76:
      return *value = capability % 10, 0;
    case 97:
      return *value = 232448, 0;
    default:
      return *value = 0, 0;
  }
}
EXPORT Result cuDevicePrimaryCtxRetain(void** context, int device) {
  static char contexts[2];
  return *context = &contexts[device], 0;
}
EXPORT Result cuCtxSetCurrent(void* context) {
  return current_context = context, 0;
}
EXPORT Result cuCtxSynchronize() {
  return need_context(), spoils_any_capture() ? kCaptureUnsupported : 0;
}
EXPORT Result cuMemGetInfo_v2(size_t* available, size_t* total) {
  *total = capacity();
  *available = *total - fake().used;
  return 0;
}
EXPORT Result cuMemAlloc_v2(Address* result, size_t nbytes) {
  need_context();
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (nbytes == 0) return 1;
  if (fake().used + nbytes > capacity()) return 2;
  void* data = nullptr;
  if (posix_memalign(&data, 512, nbytes) != 0) return 2;
  std::memset(data, 0xCD, nbytes);
  *result = reinterpret_cast<Address>(data);
  fake().device[*result] = nbytes;
  fake().used += nbytes;
  return 0;
}
EXPORT Result cuMemFree_v2(Address address) {
  need_context();
  const std::lock_guard<std::mutex> lock(fake().mutex);
  const auto it = fake().device.find(address);
  if (it == fake().device.end()) misuse("device memory is freed that is not allocated");
  fake().used -= it->second;
  fake().device.erase(it);
  std::free(pointer(address));
  return 0;
}
EXPORT Result cuMemHostRegister_v2(void* data, size_t nbytes, unsigned) {
  need_context();
  const std::lock_guard<std::mutex> lock(fake().mutex);
  return fake().pinned.emplace(reinterpret_cast<Address>(data), nbytes).second ? 0 : 712;
}
EXPORT Result cuMemHostAlloc(void** result, size_t nbytes, unsigned) {
  need_context();
  return posix_memalign(result, 4096, nbytes) != 0 ? 2 : cuMemHostRegister_v2(*result, nbytes, 0);
}
EXPORT Result cuMemHostUnregister(void* data) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (fake().pinned.erase(reinterpret_cast<Address>(data)) == 0)
    misuse("memory is unpinned that is not pinned");
  return 0;
}
EXPORT Result cuMemFreeHost(void* data) {
  return cuMemHostUnregister(data), std::free(data), 0;
}
EXPORT Result cuMemcpyAsync(Address to, Address from, size_t nbytes, void* stream) {
  need_stream(stream);
  if (recorded(stream, [=](void* on) { cuMemcpyAsync(to, from, nbytes, on); })) return 0;
  std::memcpy(pointer(to), pointer(from), nbytes);
  return 0;
}
EXPORT Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t nbytes, void* stream) {
  need_stream(stream);
  if (recorded(stream, [=](void* on) { cuMemcpyHtoDAsync_v2(to, from, nbytes, on); })) return 0;
  need_device(to, nbytes, "a copy to the device leaves its allocation");
  need_host(from, nbytes, "a copy from the host reads device memory");
  std::memcpy(pointer(to), from, nbytes);
  return 0;
}
EXPORT Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t nbytes, void* stream) {
  need_stream(stream);
  if (recorded(stream, [=](void* on) { cuMemcpyDtoHAsync_v2(to, from, nbytes, on); })) return 0;
  need_device(from, nbytes, "a copy from the device leaves its allocation");
  need_host(to, nbytes, "a copy to the host writes device memory");
  std::memcpy(to, pointer(from), nbytes);
  return 0;
}
EXPORT Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t nbytes, void* stream) {
  need_stream(stream);
  if (recorded(stream, [=](void* on) { cuMemcpyDtoDAsync_v2(to, from, nbytes, on); })) return 0;
  need_device(to, nbytes, "a device copy leaves its target");
  need_device(from, nbytes, "a device copy leaves its source");
  std::memmove(pointer(to), pointer(from), nbytes);
  return 0;
}

struct Copy2D {
  size_t src_x, src_y;
  unsigned src_type;
  const void* src_host;
  Address src_device;
  void* src_array;
  size_t src_pitch, dst_x, dst_y;
  unsigned dst_type;
  void* dst_host;
  Address dst_device;
  void* dst_array;
  size_t dst_pitch, width, height;
};

EXPORT Result cuMemcpy2DAsync_v2(const Copy2D* copy, void* stream) {
  need_stream(stream);
  if (copy->src_pitch < copy->width || copy->dst_pitch < copy->width) return 1;
  for (size_t row = 0; row < copy->height; ++row) {
    cuMemcpyDtoDAsync_v2(copy->dst_device + row * copy->dst_pitch, copy->src_device + row * copy->src_pitch,
                         copy->width, stream);
  }
  return 0;
}
EXPORT Result cuMemsetD8Async(Address to, unsigned char value, size_t nbytes, void* stream) {
  need_stream(stream);
  if (recorded(stream, [=](void* on) { cuMemsetD8Async(to, value, nbytes, on); })) return 0;
  need_device(to, nbytes, "a memset leaves its allocation");
  std::memset(pointer(to), value, nbytes);
  return 0;
}
EXPORT Result cuPointerGetAttribute(void* value, int attribute, Address address) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  const bool device = inside(fake().device, address, 1);
  if (!device && !inside(fake().pinned, address, 1)) return 1;
  const unsigned type = device ? 2 : 1;
  const unsigned zero = 0;
  const auto& blocks = device ? fake().device : fake().pinned;
  // Where an allocation starts is its number.
  if (attribute == 7) return std::memcpy(value, &std::prev(blocks.upper_bound(address))->first, 8), 0;
  std::memcpy(value, attribute == 2 ? &type : &zero, sizeof(unsigned));
  return 0;
}
EXPORT Result cuStreamCreate(void** stream, unsigned) {
  return need_context(), *stream = make(fake().streams), 0;
}
EXPORT Result cuStreamDestroy_v2(void* stream) {
  return destroy(fake().streams, stream, "a stream is closed twice"), 0;
}
EXPORT Result cuStreamSynchronize(void* stream) {
  return need_stream(stream), spoils_capture(stream) ? kCaptureUnsupported : 0;
}
EXPORT Result cuStreamWaitEvent(void* stream, void*, unsigned) {
  return need_stream(stream), 0;
}
EXPORT Result cuEventCreate(void** event, unsigned) {
  return need_context(), *event = make(fake().events), 0;
}
EXPORT Result cuEventDestroy_v2(void* event) {
  return destroy(fake().events, event, "an event is destroyed twice"), 0;
}
EXPORT Result cuEventQuery(void*) {
  return 0;
}
EXPORT Result cuEventRecord(void*, void* stream) {
  return need_stream(stream), 0;
}
EXPORT Result cuEventSynchronize(void*) {
  return 0;
}
EXPORT Result cuModuleLoadData(void** module, const void*) {
  return need_context(), *module = make(fake().modules), 0;
}
EXPORT Result cuModuleUnload(void* module) {
  return destroy(fake().modules, module, "a module is unloaded twice"), 0;
}
EXPORT Result cuModuleGetFunction(void** function, void* module, const char* name) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (fake().modules.count(module) == 0) misuse("the module does not exist");
  // One handle for each name, as the driver has it.
  static const char* const names[] = {"accumulate", "accumulate_pdl"};
  for (size_t i = 0; i < 2; ++i) {
    if (std::strcmp(name, names[i]) == 0) return *function = &kernels[i], 0;
  }
  return 500;
}
EXPORT Result cuFuncGetAttribute(int* value, int, void* function) {
  return need_kernel(function), *value = 0, 0;
}
EXPORT Result cuFuncSetAttribute(void* function, int, int) {
  return need_kernel(function), 0;
}
EXPORT Result cuFuncSetCacheConfig(void* function, int) {
  return need_kernel(function), 0;
}

namespace {

void accumulate(float* const* address, int64_t n) {
  for (int i = 0; n > 0 && i < 4; ++i) {
    need_device(reinterpret_cast<Address>(address[i]), static_cast<size_t>(n) * 4,
                "a kernel leaves its argument");
  }
  for (int64_t i = 0; i < n; ++i) {
    address[1][i] += address[0][i];
    address[3][i] = address[1][i] * address[2][i];
  }
  const std::lock_guard<std::mutex> lock(fake().mutex);
  ++fake().launches;
}

}  // namespace

// The one kernel: state += x; y = state * weight.
EXPORT Result cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, void* stream, void** arguments, void**) {
  need_kernel(function);
  need_stream(stream);
  std::array<float*, 4> address{};
  for (size_t i = 0; i < 4; ++i) address[i] = *static_cast<float**>(arguments[i]);
  const int64_t n = *static_cast<int64_t*>(arguments[4]);
  if (!recorded(stream, [=](void*) { accumulate(address.data(), n); })) accumulate(address.data(), n);
  return 0;
}

// As cuda.h has them.
struct LaunchAttribute {
  int id;
  int padding;
  union {
    char bytes[64];
    int number;
  } value;
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

EXPORT Result cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void** extra) {
  if (config->num_attributes != 1 || config->attributes->id != 6 || config->attributes->value.number != 1) {
    misuse("a launch has attributes that this fake does not know");
  }
  if (function != &kernels[1]) misuse("a kernel that does not wait is launched early");
  if (config->grid[0] == 0 || config->block[0] == 0) misuse("a launch of nothing");
  {
    const std::lock_guard<std::mutex> lock(fake().mutex);
    ++fake().early_launches;
  }
  return cuLaunchKernel(function, config->grid[0], config->grid[1], config->grid[2], config->block[0],
                        config->block[1], config->block[2], config->shared_bytes, config->stream, arguments,
                        extra);
}
EXPORT Result cuGetErrorName(Result, const char** name) {
  return *name = "CUDA_ERROR_FAKE", 0;
}
EXPORT Result cuGetErrorString(Result, const char** text) {
  return *text = "a fake error", 0;
}
