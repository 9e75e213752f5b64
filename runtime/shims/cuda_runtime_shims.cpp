// The CUDA runtime functions that compiled code calls, on top of the driver.
#include "cuda/capture.h"
#include "cuda/shim_status.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

thread_local CUresult last_error = kCudaSuccess;

// Of cudaMemcpyKind: both sides on the GPU.
constexpr int kDeviceToDevice = 3;

template <typename Call>
CUresult runtime_call(const char* name, const Call& call) noexcept {
  const CUresult result = cuda_status(name, call);
  if (result != kCudaSuccess && result != kCudaNotReady) last_error = result;
  return result;
}

CUdeviceptr address(const void* pointer) {
  return reinterpret_cast<CUdeviceptr>(pointer);
}

CUresult get_last_error() {
  const CUresult result = last_error;
  last_error = kCudaSuccess;
  return result;
}

CUresult peek_at_last_error() {
  return last_error;
}

const char* error_text(CUresult error, bool name) {
  if (error == kCudaSuccess) return "no error";
  const Driver* driver = Driver::get();
  const char* text = nullptr;
  if (driver != nullptr) name ? driver->cuGetErrorName(error, &text) : driver->cuGetErrorString(error, &text);
  return text == nullptr ? "unknown CUDA error" : text;
}

const char* get_error_string(CUresult error) {
  return error_text(error, false);
}
const char* get_error_name(CUresult error) {
  return error_text(error, true);
}

CUresult cuda_malloc(void** result, size_t nbytes) {
  return runtime_call("cudaMalloc", [&](Driver& driver) {
    refuse_in_capture("device memory that the model manages itself");
    CUdeviceptr data = 0;
    const CUresult status = nbytes == 0 ? kCudaSuccess : driver.cuMemAlloc_v2(&data, nbytes);
    *result = reinterpret_cast<void*>(data);
    return status;
  });
}

CUresult cuda_free(void* data) {
  return runtime_call("cudaFree", [&](Driver& driver) {
    refuse_in_capture("device memory that the model manages itself");
    return data == nullptr ? kCudaSuccess : driver.cuMemFree_v2(address(data));
  });
}

CUresult memcpy_async(void* destination, const void* source, size_t nbytes, int kind, CUstream stream) {
  return runtime_call("cudaMemcpyAsync", [&](Driver& driver) {
    // The host's side may be gone, or have other values, when the graph is launched.
    if (kind != kDeviceToDevice)
      refuse_in_capture("a copy between the GPU and memory of the model's host code");
    return nbytes == 0 ? kCudaSuccess
                       : driver.cuMemcpyAsync(address(destination), address(source), nbytes, stream);
  });
}

// In the order of the delegate's stream, which does not wait for the default stream.
CUresult memcpy_sync(void* destination, const void* source, size_t nbytes, int) {
  return runtime_call("cudaMemcpy", [&](Driver& driver) {
    if (nbytes == 0) return kCudaSuccess;
    refuse_in_capture("a copy that the host waits for");
    CUstream stream = current_cuda().stream;
    const CUresult status = driver.cuMemcpyAsync(address(destination), address(source), nbytes, stream);
    return status == kCudaSuccess ? driver.cuStreamSynchronize(stream) : status;
  });
}

CUresult memset_async(void* data, int value, size_t nbytes, CUstream stream) {
  return runtime_call("cudaMemsetAsync", [&](Driver& driver) {
    return nbytes == 0
               ? kCudaSuccess
               : driver.cuMemsetD8Async(address(data), static_cast<unsigned char>(value), nbytes, stream);
  });
}

CUresult memset_sync(void* data, int value, size_t nbytes) {
  return memset_async(data, value, nbytes, current_cuda().stream);
}

CUresult get_device(int* device) {
  *device = current_cuda().device;
  return kCudaSuccess;
}

CUresult set_device(int device) {
  return runtime_call("cudaSetDevice", [&](Driver& driver) {
    if (device < 0 || device >= driver.device_count()) return kCudaInvalidDevice;
    if (device != current_cuda().device) current_cuda().stream = nullptr;
    driver.use_device(device);
    current_cuda().device = device;
    return kCudaSuccess;
  });
}

CUresult get_device_count(int* count) {
  return runtime_call("cudaGetDeviceCount", [&](Driver& driver) {
    *count = driver.device_count();
    return kCudaSuccess;
  });
}

CUresult device_get_attribute(int* value, int attribute, int device) {
  return runtime_call("cudaDeviceGetAttribute", [&](Driver& driver) {
    CUdevice handle = 0;
    const CUresult status = driver.cuDeviceGet(&handle, device);
    return status == kCudaSuccess ? driver.cuDeviceGetAttribute(value, attribute, handle) : status;
  });
}

CUresult device_synchronize() {
  return runtime_call("cudaDeviceSynchronize", [](Driver& driver) {
    refuse_in_capture("waiting for the GPU");
    const auto no_captures = exclude_captures();
    return driver.cuCtxSynchronize();
  });
}

CUresult event_create_with_flags(CUevent* event, unsigned flags) {
  return runtime_call("cudaEventCreateWithFlags",
                      [&](Driver& driver) { return driver.cuEventCreate(event, flags); });
}

CUresult event_create(CUevent* event) {
  return event_create_with_flags(event, 0);
}

CUresult event_destroy(CUevent event) {
  return runtime_call("cudaEventDestroy", [&](Driver& driver) { return driver.cuEventDestroy_v2(event); });
}

CUresult event_query(CUevent event) {
  return runtime_call("cudaEventQuery", [&](Driver& driver) {
    refuse_in_capture("asking whether an event has happened");
    return driver.cuEventQuery(event);
  });
}

CUresult event_record(CUevent event, CUstream stream) {
  return runtime_call("cudaEventRecord", [&](Driver& driver) { return driver.cuEventRecord(event, stream); });
}

CUresult event_synchronize(CUevent event) {
  return runtime_call("cudaEventSynchronize", [&](Driver& driver) {
    refuse_in_capture("waiting for an event");
    return driver.cuEventSynchronize(event);
  });
}

CUresult stream_create_with_flags(CUstream* stream, unsigned flags) {
  return runtime_call("cudaStreamCreateWithFlags",
                      [&](Driver& driver) { return driver.cuStreamCreate(stream, flags); });
}

CUresult stream_destroy(CUstream stream) {
  return runtime_call("cudaStreamDestroy", [&](Driver& driver) { return driver.cuStreamDestroy_v2(stream); });
}

CUresult stream_synchronize(CUstream stream) {
  return runtime_call("cudaStreamSynchronize", [&](Driver& driver) {
    refuse_in_capture("waiting for a stream");
    return driver.cuStreamSynchronize(stream);
  });
}

CUresult stream_wait_event(CUstream stream, CUevent event, unsigned flags) {
  return runtime_call("cudaStreamWaitEvent",
                      [&](Driver& driver) { return driver.cuStreamWaitEvent(stream, event, flags); });
}

// The fields that CUDA 12 and 13 share.
struct PointerAttributes {
  int type;  // 0 unregistered, 1 host, 2 device, 3 managed
  int device;
  void* device_pointer;
  void* host_pointer;
};

CUresult pointer_get_attributes(PointerAttributes* attributes, const void* pointer) {
  return runtime_call("cudaPointerGetAttributes", [&](Driver& driver) {
    unsigned type = 0;
    unsigned managed = 0;
    int device = 0;
    auto* target = const_cast<void*>(pointer);
    *attributes = {0, -1, nullptr, target};
    // Memory that the driver does not know is plain host memory, not an error.
    if (driver.cuPointerGetAttribute(&type, kPointerMemoryType, address(pointer)) != kCudaSuccess)
      return kCudaSuccess;
    driver.cuPointerGetAttribute(&managed, kPointerIsManaged, address(pointer));
    driver.cuPointerGetAttribute(&device, kPointerDeviceOrdinal, address(pointer));
    const bool on_host = type == kMemoryTypeHost;
    attributes->type = managed != 0 ? 3 : (on_host ? 1 : 2);
    attributes->device = device;
    attributes->device_pointer = target;
    attributes->host_pointer = on_host || managed != 0 ? target : nullptr;
    return kCudaSuccess;
  });
}

}  // namespace

ShimList cuda_runtime_shims() {
  static const Shim shims[] = {
      shim("cudaGetLastError", get_last_error),
      shim("cudaPeekAtLastError", peek_at_last_error),
      shim("cudaGetErrorString", get_error_string),
      shim("cudaGetErrorName", get_error_name),
      shim("cudaMalloc", cuda_malloc),
      shim("cudaFree", cuda_free),
      shim("cudaMemcpy", memcpy_sync),
      shim("cudaMemcpyAsync", memcpy_async),
      shim("cudaMemset", memset_sync),
      shim("cudaMemsetAsync", memset_async),
      shim("cudaGetDevice", get_device),
      shim("cudaSetDevice", set_device),
      shim("cudaGetDeviceCount", get_device_count),
      shim("cudaDeviceGetAttribute", device_get_attribute),
      shim("cudaDeviceSynchronize", device_synchronize),
      shim("cudaEventCreate", event_create),
      shim("cudaEventCreateWithFlags", event_create_with_flags),
      shim("cudaEventDestroy", event_destroy),
      shim("cudaEventQuery", event_query),
      shim("cudaEventRecord", event_record),
      shim("cudaEventSynchronize", event_synchronize),
      shim("cudaStreamCreateWithFlags", stream_create_with_flags),
      shim("cudaStreamDestroy", stream_destroy),
      shim("cudaStreamSynchronize", stream_synchronize),
      shim("cudaStreamWaitEvent", stream_wait_event),
      shim("cudaPointerGetAttributes", pointer_get_attributes),
  };
  return shim_list(shims);
}

}  // namespace etcuda
