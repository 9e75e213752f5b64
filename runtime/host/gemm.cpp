#include "host/gemm.h"

#include "core/failure.h"
#include "core/processor.h"
#include "memory/tensor.h"

namespace etcuda {
namespace {

bool is_supported(DType dtype) {
  return dtype == kFloat32 || dtype == kFloat64 || dtype == kBFloat16 || dtype == kFloat16;
}

}  // namespace

void gemm(const GemmProblem& problem) {
  const DType a = problem.a.dtype;
  const DType b = problem.b.dtype;
  const DType out = problem.out.dtype;
  const bool doubles = a == kFloat64;
  if (!is_supported(a) || !is_supported(b) || !is_supported(out) || doubles != (b == kFloat64) ||
      doubles != (out == kFloat64) || (problem.beta != 0 && problem.addend.dtype != out)) {
    fail(ErrorCode::NotSupported,
         "a matrix product of %s and %s into %s is not supported on the host. Export the model in one of "
         "float32, "
         "float64, bfloat16, float16.",
         dtype_name(a), dtype_name(b), dtype_name(out));
  }
  if (problem.m == 0 || problem.n == 0) return;
  const StoragePtr workspace = allocate_storage(static_cast<size_t>(gemm_workspace_bytes(problem)), kHost, 0);
  if (processor_has_avx2_fma_f16c()) {
    gemm_avx2(problem, workspace->data);
  } else {
    gemm_portable(problem, workspace->data);
  }
}

}  // namespace etcuda
