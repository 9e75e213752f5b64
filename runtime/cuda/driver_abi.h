// The part of the CUDA driver's C ABI that this runtime calls, declared here so that building needs no CUDA
// toolkit. Types and values are those of cuda.h since CUDA 12; the driver keeps them stable.
#pragma once

#include <cstddef>
#include <cstdint>

namespace etcuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphExec = struct CUgraphExec_st*;

constexpr CUresult kCudaSuccess = 0;
constexpr CUresult kCudaInvalidValue = 1;
constexpr CUresult kCudaOutOfMemory = 2;
constexpr CUresult kCudaNotInitialized = 3;
constexpr CUresult kCudaNoDevice = 100;
constexpr CUresult kCudaInvalidDevice = 101;
constexpr CUresult kCudaNotReady = 600;
constexpr CUresult kCudaNotSupported = 801;
constexpr CUresult kCudaUnknown = 999;

constexpr unsigned kStreamNonBlocking = 1;
constexpr int kCaptureRelaxed = 2;
constexpr unsigned kEventDisableTiming = 2;
constexpr unsigned kHostAllocPortable = 1;
constexpr unsigned kHostRegisterPortable = 1;
constexpr unsigned kMemoryTypeHost = 1;
constexpr unsigned kMemoryTypeDevice = 2;
constexpr int kPointerMemoryType = 2;
constexpr int kPointerBufferId = 7;
constexpr int kPointerIsManaged = 8;
constexpr int kPointerDeviceOrdinal = 9;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr int kSharedMemoryPerBlockOptin = 97;

struct CudaMemcpy2D {
  size_t src_x, src_y;
  unsigned src_memory_type;
  const void* src_host;
  CUdeviceptr src_device;
  void* src_array;
  size_t src_pitch;
  size_t dst_x, dst_y;
  unsigned dst_memory_type;
  void* dst_host;
  CUdeviceptr dst_device;
  void* dst_array;
  size_t dst_pitch;
  size_t width, height;
};
static_assert(sizeof(CudaMemcpy2D) == 128);

constexpr int kLaunchProgrammaticStreamSerialization = 6;
struct CudaLaunchAttribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int number;
  } value;
};
static_assert(sizeof(CudaLaunchAttribute) == 72);

struct CudaLaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  CUstream stream;
  CudaLaunchAttribute* attributes;
  unsigned num_attributes;
};
static_assert(sizeof(CudaLaunchConfig) == 56);

// X(symbol, parameters): every driver function that must be there.
#define ETCUDA_DRIVER_FUNCTIONS(X)                                                                     \
  X(cuInit, (unsigned))                                                                                \
  X(cuDriverGetVersion, (int*))                                                                        \
  X(cuDeviceGetCount, (int*))                                                                          \
  X(cuDeviceGet, (CUdevice*, int))                                                                     \
  X(cuDeviceGetName, (char*, int, CUdevice))                                                           \
  X(cuDeviceGetAttribute, (int*, int, CUdevice))                                                       \
  X(cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice))                                                  \
  X(cuCtxSetCurrent, (CUcontext))                                                                      \
  X(cuCtxSynchronize, ())                                                                              \
  X(cuMemGetInfo_v2, (size_t*, size_t*))                                                               \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                             \
  X(cuMemFree_v2, (CUdeviceptr))                                                                       \
  X(cuMemHostAlloc, (void**, size_t, unsigned))                                                        \
  X(cuMemFreeHost, (void*))                                                                            \
  X(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                       \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                                \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                                      \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                \
  X(cuMemcpy2DAsync_v2, (const CudaMemcpy2D*, CUstream))                                               \
  X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                   \
  X(cuPointerGetAttribute, (void*, int, CUdeviceptr))                                                  \
  X(cuStreamCreate, (CUstream*, unsigned))                                                             \
  X(cuStreamDestroy_v2, (CUstream))                                                                    \
  X(cuStreamSynchronize, (CUstream))                                                                   \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                  \
  X(cuEventCreate, (CUevent*, unsigned))                                                               \
  X(cuEventDestroy_v2, (CUevent))                                                                      \
  X(cuEventQuery, (CUevent))                                                                           \
  X(cuEventRecord, (CUevent, CUstream))                                                                \
  X(cuEventSynchronize, (CUevent))                                                                     \
  X(cuModuleLoadData, (CUmodule*, const void*))                                                        \
  X(cuModuleUnload, (CUmodule))                                                                        \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                         \
  X(cuFuncGetAttribute, (int*, int, CUfunction))                                                       \
  X(cuFuncSetAttribute, (CUfunction, int, int))                                                        \
  X(cuFuncSetCacheConfig, (CUfunction, int))                                                           \
  X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
                     CUstream, void**, void**))                                                        \
  X(cuGetErrorName, (CUresult, const char**))                                                          \
  X(cuGetErrorString, (CUresult, const char**))

// Functions that few need: newer ones, which only some images use, and those of CUDA graphs and of pinning.
#define ETCUDA_OPTIONAL_DRIVER_FUNCTIONS(X)                                                                  \
  X(cuMemHostRegister_v2, (void*, size_t, unsigned))                                                         \
  X(cuMemHostUnregister, (void*))                                                                            \
  X(cuLaunchKernelEx, (const void*, CUfunction, void**, void**))                                             \
  X(cuTensorMapEncodeTiled, (void*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, \
                             const uint32_t*, int, int, int, int))                                           \
  X(cuStreamBeginCapture_v2, (CUstream, int))                                                                \
  X(cuStreamEndCapture, (CUstream, CUgraph*))                                                                \
  X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                                \
  X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                  \
  X(cuGraphExecDestroy, (CUgraphExec))                                                                       \
  X(cuGraphDestroy, (CUgraph))

}  // namespace etcuda
