// mm, addmm, bmm and baddbmm on the GPU.
#include "cuda/matmul.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

AotiError matmul(const char* name, TensorHandle out, TensorHandle addend, TensorHandle a, TensorHandle b,
                 double beta, double alpha) {
  return guarded([&] { cuda_matmul(name, matmul_arguments(name, *out, addend, *a, *b, beta, alpha)); });
}

AotiError mm_out(TensorHandle out, TensorHandle a, TensorHandle b) {
  return matmul("mm", out, nullptr, a, b, 0, 1);
}

AotiError addmm_out(TensorHandle out, TensorHandle self, TensorHandle a, TensorHandle b, double beta,
                    double alpha) {
  return matmul("addmm", out, self, a, b, beta, alpha);
}

AotiError bmm_out(TensorHandle out, TensorHandle a, TensorHandle b) {
  return matmul("bmm", out, nullptr, a, b, 0, 1);
}

AotiError baddbmm_out(TensorHandle out, TensorHandle self, TensorHandle a, TensorHandle b, double beta,
                      double alpha) {
  return matmul("baddbmm", out, self, a, b, beta, alpha);
}

}  // namespace

ShimList cuda_matmul_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_cuda_mm_out", mm_out),
      shim("aoti_torch_cuda_addmm_out", addmm_out),
      shim("aoti_torch_cuda_bmm_out", bmm_out),
      shim("aoti_torch_cuda_baddbmm_out", baddbmm_out),
  };
  return shim_list(shims);
}

}  // namespace etcuda
