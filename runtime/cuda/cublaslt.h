// cuBLASLt, opened when the first matrix product runs on a GPU.
#pragma once

#include <string>

#include "cuda/cublaslt_abi.h"

namespace etcuda {

class CublasLt {
 public:
  // Throws Failure(NotSupported) that says what was tried.
  static CublasLt& require();
  // Tried before the system's search path.
  static void set_path(const std::string& path);

#define ETCUDA_DECLARE(name, parameters) CublasStatus(*name) parameters = nullptr;
  ETCUDA_CUBLASLT_FUNCTIONS(ETCUDA_DECLARE)
#undef ETCUDA_DECLARE

  // One handle per device, made in the current context.
  CublasHandle handle(int device);
  void check(CublasStatus status, const char* what) const;

 private:
  CublasLt() = default;
  std::string open();
};

}  // namespace etcuda
