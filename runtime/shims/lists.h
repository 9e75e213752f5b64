// The shims of each file.
#pragma once

#include "shims/abi.h"

namespace etcuda {

ShimList tensor_shims();
ShimList view_shims();
ShimList copy_shims();
ShimList scalar_shims();
ShimList process_shims();
ShimList host_matmul_shims();
ShimList host_order_shims();
ShimList cuda_stream_shims();
ShimList cuda_convolution_shims();
ShimList cuda_matmul_shims();
ShimList cuda_runtime_shims();
ShimList cuda_driver_shims();

}  // namespace etcuda
