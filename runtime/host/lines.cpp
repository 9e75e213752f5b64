#include "host/lines.h"

#include <algorithm>

namespace etcuda {

Dim dim_of(const char* op, const Tensor& tensor, int64_t dim) {
  const int64_t rank = std::max<int64_t>(tensor.rank, 1);
  const int64_t wrapped = dim < 0 ? dim + rank : dim;
  if (wrapped < 0 || wrapped >= rank) {
    fail(ErrorCode::InvalidArgument, "%s: dimension %lld of a tensor of rank %lld.", op,
         static_cast<long long>(dim), static_cast<long long>(tensor.rank));
  }
  return {wrapped, tensor.rank == 0 ? 1 : tensor.sizes[static_cast<size_t>(wrapped)]};
}

std::unique_ptr<Tensor> contiguous(int64_t rank, const int64_t* sizes, DType dtype) {
  std::array<int64_t, kMaxTensorRank> strides{};
  int64_t step = 1;
  for (int64_t i = rank; i-- > 0;) {
    strides[static_cast<size_t>(i)] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  return make_empty(rank, sizes, strides.data(), dtype, kHost, 0);
}

std::unique_ptr<Tensor> dense_like(const Tensor& like, DType dtype) {
  // Dimensions from the innermost out; of equal strides the smaller dimension is the inner one.
  std::array<size_t, kMaxTensorRank> order{};
  const auto rank = static_cast<size_t>(like.rank);
  for (size_t i = 0; i < rank; ++i) order[i] = rank - 1 - i;
  std::stable_sort(order.begin(), order.begin() + rank, [&](size_t a, size_t b) {
    return like.strides[a] < like.strides[b] ||
           (like.strides[a] == like.strides[b] && like.sizes[a] < like.sizes[b]);
  });
  std::array<int64_t, kMaxTensorRank> strides{};
  int64_t step = 1;
  for (size_t i = 0; i < rank; ++i) {
    strides[order[i]] = step;
    step *= std::max<int64_t>(like.sizes[order[i]], 1);
  }
  // Strides of dimensions of size 1 mean nothing, but are kept where the tensor is dense as it is.
  bool dense = true;
  for (size_t i = 0; i < rank; ++i) dense = dense && (like.sizes[i] == 1 || strides[i] == like.strides[i]);
  return make_empty(like.rank, like.sizes.data(), dense ? like.strides.data() : strides.data(), dtype, kHost,
                    0);
}

}  // namespace etcuda
