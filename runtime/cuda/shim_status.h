// The status codes of cu* and cuda* shims. CUDA's runtime and driver use the same numbers for the same
// errors.
#pragma once

#include <exception>

#include "core/failure.h"
#include "cuda/driver.h"

namespace etcuda {

// Runs `call(driver)`; remembers why it failed, since compiled code passes on a number at best.
template <typename Call>
CUresult cuda_status(const char* name, const Call& call) noexcept {
  try {
    Driver& driver = Driver::require(name);
    const CUresult result = call(driver);
    if (result != kCudaSuccess && result != kCudaNotReady) {
      const ErrorCode code =
          result == kCudaOutOfMemory ? ErrorCode::MemoryAllocationFailed : ErrorCode::Internal;
      set_shim_error(
          code, format("the CUDA call %s failed with %s.", name, driver.describe(result).c_str()).c_str());
    }
    return result;
  } catch (const Failure& failure) {
    set_shim_error(failure.code(), failure.what());
    return failure.code() == ErrorCode::NotSupported ? kCudaNoDevice : kCudaUnknown;
  } catch (const std::exception& error) {
    set_shim_error(ErrorCode::Internal, error.what());
    return kCudaUnknown;
  }
}

}  // namespace etcuda
