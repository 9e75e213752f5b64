#include "cuda/cublaslt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/failure.h"

namespace etcuda {
namespace {

std::mutex& mutex() {
  static auto* value = new std::mutex();
  return *value;
}

std::string& preferred_path() {
  static auto* path = new std::string();
  return *path;
}

}  // namespace

void CublasLt::set_path(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex());
  preferred_path() = path;
}

std::string CublasLt::open() {
  std::vector<std::string> candidates;
  if (const char* path = std::getenv("ETCUDA_CUBLASLT")) candidates.emplace_back(path);
  {
    const std::lock_guard<std::mutex> lock(mutex());
    if (!preferred_path().empty()) candidates.push_back(preferred_path());
  }
  candidates.emplace_back("libcublasLt.so.13");
  candidates.emplace_back("libcublasLt.so.12");
  void* library = nullptr;
  std::string tried;
  for (const std::string& candidate : candidates) {
    library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    const char* error = dlerror();
    tried += format("\n  %s", error == nullptr ? candidate.c_str() : error);
  }
  if (library == nullptr) {
    return "cuBLASLt was not found. Install it (pip install nvidia-cublas) or set ETCUDA_CUBLASLT to its "
           "path. Tried:" +
           tried;
  }
#define ETCUDA_RESOLVE(name, parameters)                                      \
  name = reinterpret_cast<CublasStatus(*) parameters>(dlsym(library, #name)); \
  if (name == nullptr) return "this cuBLASLt has no function " #name ": install the one of CUDA 12 or 13";
  ETCUDA_CUBLASLT_FUNCTIONS(ETCUDA_RESOLVE)
#undef ETCUDA_RESOLVE
  return {};
}

CublasLt& CublasLt::require() {
  static std::string reason;
  static CublasLt* const library = [] {
    auto* opened = new CublasLt();
    reason = opened->open();
    return opened;
  }();
  if (!reason.empty())
    fail(ErrorCode::NotSupported, "matrix products on the GPU need cuBLASLt: %s.", reason.c_str());
  return *library;
}

CublasHandle CublasLt::handle(int device) {
  static auto* handles = new std::map<int, CublasHandle>();
  const std::lock_guard<std::mutex> lock(mutex());
  CublasHandle& handle = (*handles)[device];
  if (handle == nullptr) check(cublasLtCreate(&handle), "cublasLtCreate");
  return handle;
}

void CublasLt::check(CublasStatus status, const char* what) const {
  if (status == kCublasSuccess) return;
  // 3 is CUBLAS_STATUS_ALLOC_FAILED.
  const ErrorCode code = status == 3 ? ErrorCode::MemoryAllocationFailed : ErrorCode::Internal;
  fail(code, "the cuBLASLt call %s failed with status %d.", what, status);
}

}  // namespace etcuda
