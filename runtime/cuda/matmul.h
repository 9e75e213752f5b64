// Matrix products on the GPU through cuBLASLt, on this thread's current stream.
#pragma once

#include "shims/matmul_arguments.h"

namespace etcuda {

// Asynchronous. Throws Failure, with the reason, for what cuBLASLt cannot do.
void cuda_matmul(const char* name, const MatmulArguments& arguments);

}  // namespace etcuda
