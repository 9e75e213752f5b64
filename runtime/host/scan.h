// Cumulative operators on the host.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

enum class Scan { kSum, kProduct, kLogSumExp };

// Of the dtype of `self`; floats are accumulated in double. Throws Failure on a dtype without arithmetic, or
// a dimension that there is not.
std::unique_ptr<Tensor> host_scan(Scan scan, const Tensor& self, int64_t dim);

struct Extreme {
  std::unique_ptr<Tensor> values;
  std::unique_ptr<Tensor> indices;  // int64
};

// The extreme so far and the last place that has it; a NaN stays.
Extreme host_running_extreme(const Tensor& self, int64_t dim, bool greatest);

}  // namespace etcuda
