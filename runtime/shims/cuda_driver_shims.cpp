// The CUDA driver functions that compiled code calls.
#include "cuda/capture.h"
#include "cuda/kernel_table.h"
#include "cuda/pdl.h"
#include "cuda/shim_status.h"
#include "image/image.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

CUresult module_load_data(CUmodule* module, const void* image) {
  return cuda_status("cuModuleLoadData", [&](Driver& driver) {
    const CUresult result = driver.cuModuleLoadData(module, image);
    if (result == kCudaSuccess && ModuleList::current() != nullptr) ModuleList::current()->add(*module);
    return result;
  });
}

CUresult module_unload(CUmodule module) {
  return cuda_status("cuModuleUnload", [&](Driver& driver) {
    refuse_in_capture("unloading a kernel");
    if (ModuleList::current() != nullptr) ModuleList::current()->remove(module);
    return driver.cuModuleUnload(module);
  });
}

CUresult module_get_function(CUfunction* function, CUmodule module, const char* name) {
  return cuda_status("cuModuleGetFunction", [&](Driver& driver) {
    const CUresult result = driver.cuModuleGetFunction(function, module, name);
    if (result == kCudaSuccess) *function = handle_of(*function, name);
    return result;
  });
}

CUresult func_get_attribute(int* value, int attribute, CUfunction function) {
  return cuda_status("cuFuncGetAttribute", [&](Driver& driver) {
    return driver.cuFuncGetAttribute(value, attribute, kernel_of(function).function);
  });
}

CUresult func_set_attribute(CUfunction function, int attribute, int value) {
  return cuda_status("cuFuncSetAttribute", [&](Driver& driver) {
    return driver.cuFuncSetAttribute(kernel_of(function).function, attribute, value);
  });
}

CUresult func_set_cache_config(CUfunction function, int config) {
  return cuda_status("cuFuncSetCacheConfig", [&](Driver& driver) {
    return driver.cuFuncSetCacheConfig(kernel_of(function).function, config);
  });
}

CUresult launch_kernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                       CUstream stream, void** arguments, void** extra) {
  return cuda_status("cuLaunchKernel", [&](Driver& driver) {
    const Kernel& kernel = kernel_of(function);
    if (kernel.is_pdl) {
      return launch_pdl(driver, kernel.function, grid_x, grid_y, grid_z, block_x, block_y, block_z,
                        shared_bytes, stream, arguments, extra);
    }
    return driver.cuLaunchKernel(kernel.function, grid_x, grid_y, grid_z, block_x, block_y, block_z,
                                 shared_bytes, stream, arguments, extra);
  });
}

CUresult launch_kernel_ex(const void* config, CUfunction function, void** arguments, void** extra) {
  return cuda_status("cuLaunchKernelEx", [&](Driver& driver) {
    if (driver.cuLaunchKernelEx == nullptr) return kCudaNotSupported;
    return driver.cuLaunchKernelEx(config, kernel_of(function).function, arguments, extra);
  });
}

CUresult tensor_map_encode_tiled(void* map, int dtype, uint32_t rank, void* data, const uint64_t* sizes,
                                 const uint64_t* strides, const uint32_t* box,
                                 const uint32_t* element_strides, int interleave, int swizzle, int promotion,
                                 int fill) {
  return cuda_status("cuTensorMapEncodeTiled", [&](Driver& driver) {
    if (driver.cuTensorMapEncodeTiled == nullptr) return kCudaNotSupported;
    return driver.cuTensorMapEncodeTiled(map, dtype, rank, data, sizes, strides, box, element_strides,
                                         interleave, swizzle, promotion, fill);
  });
}

CUresult get_error_string(CUresult error, const char** text) {
  const Driver* driver = Driver::get();
  return driver == nullptr ? kCudaNotInitialized : driver->cuGetErrorString(error, text);
}

CUresult get_error_name(CUresult error, const char** text) {
  const Driver* driver = Driver::get();
  return driver == nullptr ? kCudaNotInitialized : driver->cuGetErrorName(error, text);
}

CUresult ctx_synchronize() {
  return cuda_status("cuCtxSynchronize", [](Driver& driver) {
    refuse_in_capture("waiting for the GPU");
    const auto no_captures = exclude_captures();
    return driver.cuCtxSynchronize();
  });
}

CUresult stream_synchronize(CUstream stream) {
  return cuda_status("cuStreamSynchronize", [&](Driver& driver) {
    refuse_in_capture("waiting for a stream");
    return driver.cuStreamSynchronize(stream);
  });
}

CUresult memset_d8_async(CUdeviceptr data, unsigned char value, size_t nbytes, CUstream stream) {
  return cuda_status("cuMemsetD8Async",
                     [&](Driver& driver) { return driver.cuMemsetD8Async(data, value, nbytes, stream); });
}

CUresult device_get_attribute(int* value, int attribute, CUdevice device) {
  return cuda_status("cuDeviceGetAttribute",
                     [&](Driver& driver) { return driver.cuDeviceGetAttribute(value, attribute, device); });
}

}  // namespace

ShimList cuda_driver_shims() {
  static const Shim shims[] = {
      shim("cuModuleLoadData", module_load_data),
      shim("cuModuleUnload", module_unload),
      shim("cuModuleGetFunction", module_get_function),
      shim("cuFuncGetAttribute", func_get_attribute),
      shim("cuFuncSetAttribute", func_set_attribute),
      shim("cuFuncSetCacheConfig", func_set_cache_config),
      shim("cuLaunchKernel", launch_kernel),
      shim("cuLaunchKernelEx", launch_kernel_ex),
      shim("cuTensorMapEncodeTiled", tensor_map_encode_tiled),
      shim("cuGetErrorString", get_error_string),
      shim("cuGetErrorName", get_error_name),
      shim("cuCtxSynchronize", ctx_synchronize),
      shim("cuStreamSynchronize", stream_synchronize),
      shim("cuMemsetD8Async", memset_d8_async),
      shim("cuDeviceGetAttribute", device_get_attribute),
  };
  return shim_list(shims);
}

}  // namespace etcuda
