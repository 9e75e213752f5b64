// Reductions through indices on the host.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

// out[.., index[.., i, ..], ..] becomes the reduction ("sum", "prod", "mean", "amax", "amin") of the elements
// of `src` that fall there, and of what it held if `include_self`; others keep what they held. Deterministic:
// in the order of `src`. Sums and products of floats are taken in double.
//
// Throws Failure on another reduction, a dtype without arithmetic, or an index that is out of bounds.
void host_scatter_reduce(Tensor& out, int64_t dim, const Tensor& index, const Tensor& src, const char* reduce,
                         bool include_self);

}  // namespace etcuda
