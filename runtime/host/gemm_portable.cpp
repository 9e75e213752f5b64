#include "host/gemm_kernel.h"

namespace etcuda {

void gemm_portable(const GemmProblem& problem, void* workspace) {
  gemm_any(problem, workspace);
}

int64_t gemm_workspace_bytes(const GemmProblem& problem) {
  if (problem.a.dtype == kFloat64) return workspace_elements<double>(problem) * 8;
  return workspace_elements<float>(problem) * 4;
}

}  // namespace etcuda
