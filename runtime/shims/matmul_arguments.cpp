#include "shims/matmul_arguments.h"

#include "core/failure.h"

namespace etcuda {
namespace {

std::string shape(const Tensor& tensor) {
  return describe_shape(tensor.rank, tensor.sizes.data());
}

BatchedMatrix matrix(const Tensor& tensor) {
  const auto last = static_cast<size_t>(tensor.rank - 1);
  BatchedMatrix view{tensor.data_as<char>(), tensor.dtype, 0, tensor.strides[last - 1], tensor.strides[last]};
  if (tensor.rank == 3) view.batch_stride = tensor.strides[0];
  return view;
}

// Dimensions align at the end; missing ones and those of size 1 have stride 0.
BatchedMatrix broadcast(const char* name, const Tensor& addend, const Tensor& out) {
  int64_t strides[3] = {};
  const int64_t lead = out.rank - addend.rank;
  for (int64_t i = 0; i < addend.rank; ++i) {
    const int64_t size = addend.sizes[static_cast<size_t>(i)];
    const bool fits = lead >= 0 && (size == 1 || size == out.sizes[static_cast<size_t>(i + lead)]);
    if (!fits) {
      fail(ErrorCode::InvalidArgument, "%s: an addend of shape %s does not broadcast to %s.", name,
           shape(addend).c_str(), shape(out).c_str());
    }
    strides[3 - out.rank + i + lead] = size == 1 ? 0 : addend.strides[static_cast<size_t>(i)];
  }
  return {addend.data_as<char>(), addend.dtype, strides[0], strides[1], strides[2]};
}

}  // namespace

MatmulArguments matmul_arguments(const char* name, const Tensor& out, const Tensor* addend, const Tensor& a,
                                 const Tensor& b, double beta, double alpha) {
  const int64_t rank = out.rank;
  bool fits = (rank == 2 || rank == 3) && a.rank == rank && b.rank == rank;
  if (fits) {
    const auto row = static_cast<size_t>(rank - 2);
    const size_t col = row + 1;
    fits = a.sizes[row] == out.sizes[row] && b.sizes[col] == out.sizes[col] && a.sizes[col] == b.sizes[row] &&
           (rank == 2 || (a.sizes[0] == out.sizes[0] && b.sizes[0] == out.sizes[0]));
  }
  if (!fits) {
    fail(ErrorCode::InvalidArgument, "%s: shapes %s and %s do not multiply to %s.", name, shape(a).c_str(),
         shape(b).c_str(), shape(out).c_str());
  }
  MatmulArguments arguments;
  const auto row = static_cast<size_t>(rank - 2);
  arguments.batch = rank == 3 ? out.sizes[0] : 1;
  arguments.m = out.sizes[row];
  arguments.n = out.sizes[row + 1];
  arguments.k = a.sizes[row + 1];
  arguments.a = matrix(a);
  arguments.b = matrix(b);
  arguments.out = matrix(out);
  arguments.alpha = alpha;
  if (addend != nullptr && beta != 0) {
    arguments.addend = broadcast(name, *addend, out);
    arguments.beta = beta;
  }
  return arguments;
}

}  // namespace etcuda
