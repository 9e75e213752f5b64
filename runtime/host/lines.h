// Lines of tensors along one dimension, and the C++ type behind a dtype.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/failure.h"
#include "core/half.h"
#include "memory/tensor.h"

namespace etcuda {

// One dimension of a tensor; a tensor of rank 0 is one line of one element.
struct Dim {
  int64_t index;
  int64_t size;
};

Dim dim_of(const char* op, const Tensor& tensor, int64_t dim);
inline int64_t stride_along(const Tensor& tensor, const Dim& dim) {
  return tensor.rank == 0 ? 1 : tensor.strides[static_cast<size_t>(dim.index)];
}

// Empty: as `like` lies in memory where that has neither gaps nor overlaps, else dense in the order of its
// strides.
std::unique_ptr<Tensor> dense_like(const Tensor& like, DType dtype);
// Empty, the last dimension innermost.
std::unique_ptr<Tensor> contiguous(int64_t rank, const int64_t* sizes, DType dtype);

// Calls each(offsets) for every line of `shape` along `dim`: the element offset of its start in each tensor.
// Tensors have the rank of `shape`, and reach at least as far in the other dimensions.
template <size_t N, typename Each>
void for_each_line(const Tensor& shape, const Dim& dim, const std::array<const Tensor*, N>& tensors,
                   const Each& each) {
  int64_t lines = 1;
  for (int64_t i = 0; i < shape.rank; ++i) {
    if (i != dim.index) lines *= shape.sizes[static_cast<size_t>(i)];
  }
  std::array<int64_t, kMaxTensorRank> index{};
  std::array<int64_t, N> offsets{};
  for (int64_t line = 0; line < lines; ++line) {
    each(offsets);
    for (int64_t i = shape.rank; i-- > 0;) {
      const auto at = static_cast<size_t>(i);
      if (i == dim.index) continue;
      const bool carries = ++index[at] == shape.sizes[at];
      const int64_t step = carries ? 1 - index[at] : 1;
      for (size_t t = 0; t < N; ++t) offsets[t] += step * tensors[t]->strides[at];
      if (!carries) break;
      index[at] = 0;
    }
  }
}

// What a value is computed and compared as: 16-bit floats as float.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>, float, T>;

template <typename T>
Wide<T> widen(T value) {
  return static_cast<Wide<T>>(value);
}

template <typename T>
bool is_nan(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::isnan(value);
  } else {
    return false;
  }
}

// Calls body(T{}) with the C++ type of `dtype`.
template <typename Body>
void with_type(const char* op, DType dtype, const Body& body) {
  switch (dtype) {
    case kBool:
      return body(bool{});
    case kUInt8:
      return body(uint8_t{});
    case kInt8:
      return body(int8_t{});
    case kInt16:
      return body(int16_t{});
    case kInt32:
      return body(int32_t{});
    case kInt64:
      return body(int64_t{});
    case kFloat16:
      return body(Float16{});
    case kBFloat16:
      return body(BFloat16{});
    case kFloat32:
      return body(float{});
    case kFloat64:
      return body(double{});
    default:
      fail(ErrorCode::NotSupported, "%s takes no %s.", op, dtype_name(dtype));
  }
}

}  // namespace etcuda
