// The kernels that compiled code knows. Code holds a handle of ours in the place of the driver's, so that a
// launch has what it needs to know of the kernel without looking anything up.
#pragma once

#include <string>

#include "cuda/driver.h"

namespace etcuda {

struct Kernel {
  CUfunction function;  // the driver's
  std::string name;
  bool is_pdl;  // waits by itself for the kernel in front; see cuda/pdl.h
};

// The handle of a kernel that the driver has found, the same for the same function. Stays valid as long as
// its module is loaded.
CUfunction handle_of(CUfunction function, const char* name);

// The kernel behind a handle that handle_of() gave.
inline const Kernel& kernel_of(CUfunction handle) {
  return *reinterpret_cast<const Kernel*>(handle);
}

}  // namespace etcuda
