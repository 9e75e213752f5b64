// mm, addmm, bmm, baddbmm and convolution on the host.
#include "host/convolution.h"
#include "host/gemm.h"
#include "shims/lists.h"
#include "shims/matmul_arguments.h"

namespace etcuda {
namespace {

MatrixView matrix_at(const BatchedMatrix& matrix, int64_t index) {
  const auto size = static_cast<int64_t>(dtype_size(matrix.dtype));
  char* data = matrix.data == nullptr ? nullptr : matrix.data + index * matrix.batch_stride * size;
  return {data, matrix.dtype, matrix.row_stride, matrix.col_stride};
}

AotiError matmul(const char* name, TensorHandle out, TensorHandle addend, TensorHandle a, TensorHandle b,
                 double beta, double alpha) {
  return guarded([&] {
    const MatmulArguments all = matmul_arguments(name, *out, addend, *a, *b, beta, alpha);
    for (int64_t i = 0; i < all.batch; ++i) {
      gemm({all.m, all.n, all.k, matrix_at(all.a, i), matrix_at(all.b, i), matrix_at(all.out, i),
            matrix_at(all.addend, i), all.alpha, all.beta});
    }
  });
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

AotiError convolution(TensorHandle input, TensorHandle weight, TensorHandle* bias, const int64_t* stride,
                      int64_t stride_size, const int64_t* padding, int64_t padding_size,
                      const int64_t* dilation, int64_t dilation_size, int32_t transposed,
                      const int64_t* output_padding, int64_t output_padding_size, int64_t groups,
                      TensorHandle* result) {
  return guarded([&] {
    const ConvolutionOptions options =
        convolution_options(*input, {stride, stride_size}, {padding, padding_size}, {dilation, dilation_size},
                            transposed != 0, {output_padding, output_padding_size}, groups);
    *result = host_convolution(*input, *weight, bias == nullptr ? nullptr : *bias, options).release();
  });
}

}  // namespace

ShimList host_matmul_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_cpu_mm_out", mm_out),           shim("aoti_torch_cpu_addmm_out", addmm_out),
      shim("aoti_torch_cpu_bmm_out", bmm_out),         shim("aoti_torch_cpu_baddbmm_out", baddbmm_out),
      shim("aoti_torch_cpu_convolution", convolution),
  };
  return shim_list(shims);
}

}  // namespace etcuda
