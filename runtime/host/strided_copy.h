// Element-wise copy between strided views in host memory.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

struct StridedView {
  void* data;
  const int64_t* strides;  // in elements
  DType dtype;
};

// Copies `rank` dimensions of `sizes`; converts between dtypes as a C++ cast does. A source stride may be 0.
void strided_copy(int64_t rank, const int64_t* sizes, const StridedView& destination,
                  const StridedView& source);

// Converts one element. Throws Failure(NotSupported) for dtypes that hold no plain number.
void convert_scalar(void* destination, DType destination_dtype, const void* source, DType source_dtype);

}  // namespace etcuda
