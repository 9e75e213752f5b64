// Compiled with -mavx2 -mfma -mf16c; called only on a processor that has them.
#include "host/gemm_kernel.h"

namespace etcuda {

void gemm_avx2(const GemmProblem& problem, void* workspace) {
  gemm_any(problem, workspace);
}

}  // namespace etcuda
