// Binary search on the host.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

// How many elements of a sorted sequence are less than each value, or not greater if `right`; int64, or
// int32.
//
// `sequence` has one dimension, or those of `values` but for the last. `sorter`, which may be null, says the
// order of its elements. Throws Failure where dtypes differ.
std::unique_ptr<Tensor> host_search(const Tensor& sequence, const Tensor& values, const Tensor* sorter,
                                    bool right, bool out_int32);

}  // namespace etcuda
