// The C interface of libetcuda_runtime.so, for the Python binding and for programs that link it. Every
// function may be called from any thread, and none throws.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define ETCUDA_API __attribute__((visibility("default")))

struct EtcudaMemoryStats {
  int32_t device_type;  // 0 host, 1 cuda
  int32_t device_index;
  uint64_t allocated;  // bytes in use
  uint64_t reserved;   // bytes in use or cached
  uint64_t peak;       // most bytes in use at one time
  uint64_t calls;      // allocations asked of the system or the driver
  uint64_t graphs;     // bytes in use that CUDA graphs hold
};

// CUDA graphs of the whole process.
struct EtcudaGraphStats {
  uint64_t live;      // that are kept
  uint64_t captures;  // made so far
  uint64_t replays;   // calls that launched one
  uint64_t refusals;  // captures and launches that failed; the call then ran without
};

// Whether EtcudaBackend is registered with ExecuTorch and is this library's.
ETCUDA_API int etcuda_is_registered(void);
// Whether a CUDA device can be used. If not, etcuda_gpu_unavailable_reason() says why.
ETCUDA_API int etcuda_gpu_available(void);
ETCUDA_API const char* etcuda_gpu_unavailable_reason(void);
// Names of the functions that code images may import, sorted.
ETCUDA_API const char* const* etcuda_shim_names(size_t* count);
// Fills up to `capacity` entries, one per device in use; returns how many there are.
ETCUDA_API size_t etcuda_memory_stats(struct EtcudaMemoryStats* stats, size_t capacity);
// Returns cached memory to the system and the driver. 0 on success.
ETCUDA_API int etcuda_empty_cache(void);
// Bytes of the first GPU that are free, what etcuda keeps for reuse among them; of all; and those that
// etcuda's programs use. 0 on success.
ETCUDA_API int etcuda_device_memory(uint64_t* free_bytes, uint64_t* total_bytes, uint64_t* in_use);
// Upper bound of the bytes that etcuda reserves on a device, 0 for none. 0 on success.
ETCUDA_API int etcuda_set_memory_limit(int32_t device_type, int32_t device_index, uint64_t nbytes);
// Restores the initial content of all mutable buffers of all loaded programs, but not those of sessions,
// which include/etcuda/session.h has. No method may be executing. Returns how many buffers there are, or -1
// on failure.
ETCUDA_API int64_t etcuda_reset_state(void);
// Copies the sentence behind the failure of this thread's last call, cut to `capacity`; returns its full
// length. It is etcuda's own, or ExecuTorch's where ExecuTorch refused the call; empty if the call succeeded.
// Calls are loading and executing a method, and the functions above that change something.
ETCUDA_API size_t etcuda_last_error(char* text, size_t capacity);
// Whether the bytes of weights are compared with their digests when they are loaded, from now on. Otherwise
// the environment variable ETCUDA_VERIFY_WEIGHTS says so: 0 or 1, which is also what holds without it.
ETCUDA_API void etcuda_set_verify_weights(int enabled);
// Whether a call that is repeated is captured in a CUDA graph and launched as one, from now on. Otherwise the
// environment variable ETCUDA_CUDA_GRAPHS says so: 0 or 1, which is also what holds without it. A method that
// is called while it is off drops its graphs.
ETCUDA_API void etcuda_set_cuda_graphs(int enabled);
// Bytes of device memory that the graphs of one device may hold, for those captured from now on; 0 for no
// bound. Otherwise the environment variable ETCUDA_CUDA_GRAPH_MEMORY says so.
ETCUDA_API void etcuda_set_cuda_graph_memory_limit(uint64_t nbytes);
// Pins memory of the caller's, such as a program's outputs: in pinned memory a CUDA graph writes large
// outputs itself, without a copy by the processor. The pages that hold it stay pinned until it is unpinned by
// the same address, which must be before it is freed. 0 on success; else nothing is pinned, and all works as
// before.
ETCUDA_API int etcuda_pin_memory(void* data, uint64_t nbytes);
ETCUDA_API int etcuda_unpin_memory(void* data);
ETCUDA_API void etcuda_graph_stats(struct EtcudaGraphStats* stats);
// Where cuBLASLt is to be looked for first. To be called before the first GPU program is loaded.
ETCUDA_API void etcuda_set_cublaslt_path(const char* path);
// Likewise for cuDNN. The variable ETCUDA_CUDNN, a path or "off", goes before it.
ETCUDA_API void etcuda_set_cudnn_path(const char* path);

#if defined(__cplusplus)
}
#endif
