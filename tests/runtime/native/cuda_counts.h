// What the fake driver counted, and the shims by name, for the tests of the GPU side.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <stdexcept>

#include "shims/table.h"

namespace etcuda_test {

struct Counts {
  size_t blocks, bytes, streams, events, modules, launches, early_launches, graphs, graph_launches;
};

inline Counts counts() {
  Counts result{};
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) throw std::runtime_error("the fake driver is not loaded");
  reinterpret_cast<void (*)(Counts*)>(dlsym(library, "fake_cuda_counts"))(&result);
  dlclose(library);
  return result;
}

// The next call of a driver's function, such as "cuGraphLaunch", returns `result`.
inline void fail_next(const char* function, int result) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) throw std::runtime_error("the fake driver is not loaded");
  reinterpret_cast<void (*)(const char*, int)>(dlsym(library, "fake_cuda_fail"))(function, result);
  dlclose(library);
}

template <typename Signature>
Signature* call_shim(const char* name) {
  return reinterpret_cast<Signature*>(etcuda::find_shim(name));
}

}  // namespace etcuda_test
