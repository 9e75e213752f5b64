// Dense matrix products on the host: any strides, fp32 accumulation (fp64 for fp64).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace etcuda {

struct MatrixView {
  void* data = nullptr;
  DType dtype = kFloat32;
  int64_t row_stride = 0;  // in elements
  int64_t col_stride = 0;
};

// out[m, n] = alpha * sum_k a[m, k] * b[k, n] + beta * addend[m, n]; the addend is not read if beta is 0.
// `out` may be the addend but must not pdl a or b. Dtypes: fp32, fp64, bf16, fp16, not fp64 mixed with
// others.
struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  MatrixView a;
  MatrixView b;
  MatrixView out;
  MatrixView addend;
  double alpha = 1;
  double beta = 0;
};

// Throws Failure(NotSupported) for other dtypes.
void gemm(const GemmProblem& problem);

// The two builds of gemm_kernel.h. `workspace` has gemm_workspace_bytes(problem) bytes, aligned to 64.
void gemm_portable(const GemmProblem& problem, void* workspace);
void gemm_avx2(const GemmProblem& problem, void* workspace);
int64_t gemm_workspace_bytes(const GemmProblem& problem);

}  // namespace etcuda
