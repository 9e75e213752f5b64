// The shapes of mm, addmm, bmm and baddbmm, checked and brought into one form for host and CUDA alike.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

// A batch of matrices; strides in elements. batch_stride is 0 where one matrix serves all.
struct BatchedMatrix {
  char* data = nullptr;
  DType dtype = kFloat32;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

// out = alpha * a @ b + beta * addend, `batch` times.
struct MatmulArguments {
  int64_t batch = 1;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  BatchedMatrix a;
  BatchedMatrix b;
  BatchedMatrix out;
  BatchedMatrix addend;  // broadcast through strides of 0; not to be read if beta is 0
  double alpha = 1;
  double beta = 0;
};

// Rank 2 or 3 throughout; `addend` may be null and may have any lower rank. Throws Failure(InvalidArgument).
MatmulArguments matmul_arguments(const char* name, const Tensor& out, const Tensor* addend, const Tensor& a,
                                 const Tensor& b, double beta, double alpha);

}  // namespace etcuda
