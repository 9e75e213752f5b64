// The C ABI between code images and this runtime: AOTInductor's shim functions, as torch 2.11 to 2.14 call
// them.
#pragma once

#include <cstdint>
#include <exception>

#include "core/failure.h"
#include "memory/tensor.h"

namespace etcuda {

using AotiError = int32_t;
constexpr AotiError kAotiSuccess = 0;
constexpr AotiError kAotiFailure = 1;

using TensorHandle = Tensor*;

struct Shim {
  const char* name;
  void* function;
};

// A function table per file; shims/table.cpp joins them.
struct ShimList {
  const Shim* shims;
  size_t count;
};

template <size_t N>
constexpr ShimList shim_list(const Shim (&shims)[N]) {
  return {shims, N};
}

template <typename Function>
Shim shim(const char* name, Function* function) {
  return {name, reinterpret_cast<void*>(function)};
}

// Runs a shim's body; an exception becomes a failure status whose reason the delegate reports.
template <typename Body>
AotiError guarded(const Body& body) noexcept {
  try {
    body();
    return kAotiSuccess;
  } catch (const Failure& failure) {
    set_shim_error(failure.code(), failure.what());
  } catch (const std::exception& error) {
    set_shim_error(ErrorCode::Internal, error.what());
  }
  return kAotiFailure;
}

}  // namespace etcuda
