// Copies that involve device memory, on this thread's current stream.
#pragma once

#include "memory/tensor.h"

namespace etcuda {

// Copies nbytes between any two addresses, asynchronously where the driver can.
void copy_bytes(void* destination, DeviceType to, const void* source, DeviceType from, size_t nbytes);
void zero_bytes(void* data, DeviceType device, size_t nbytes);
// Waits for the current stream if `device` is CUDA.
void synchronize(DeviceType device);

// destination[...] = source[...], shapes equal or source broadcast. Throws Failure where a device copy would
// have to convert dtypes, for which the runtime has no kernel.
void copy_tensor(const Tensor& destination, const Tensor& source);

}  // namespace etcuda
