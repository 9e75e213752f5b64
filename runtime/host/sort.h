// Sorting along a dimension on the host. NaN is greater than every number; equal elements keep their order.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

struct Sorted {
  std::unique_ptr<Tensor> values;
  std::unique_ptr<Tensor> indices;  // int64
};

// Throws Failure on a dtype that is not a plain number, or a dimension that there is not.
Sorted host_sort(const Tensor& self, int64_t dim, bool descending);

// The first k of a sort, in order. Throws Failure too where the dimension is shorter than k.
Sorted host_topk(const Tensor& self, int64_t k, int64_t dim, bool largest);

}  // namespace etcuda
