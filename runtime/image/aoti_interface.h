// AOTInductor's C interface to a compiled model, which every code image exports.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shims/abi.h"

namespace etcuda {

using ContainerHandle = struct ContainerOpaque*;

struct ConstantMapEntry {
  const char* name;
  TensorHandle tensor;
};

// Inputs and outputs of a run; the handles of the inputs are stolen, those of the outputs handed over.
using RunFunction = AotiError(ContainerHandle, TensorHandle* inputs, size_t num_inputs, TensorHandle* outputs,
                              size_t num_outputs, void* stream, void* proxy_executor);

struct AotiInterface {
  AotiError (*create)(ContainerHandle*, size_t num_models, const char* device, const char* cubin_dir);
  AotiError (*destroy)(ContainerHandle);
  AotiError (*num_inputs)(ContainerHandle, size_t*);
  AotiError (*num_outputs)(ContainerHandle, size_t*);
  AotiError (*num_constants)(ContainerHandle, size_t*);
  AotiError (*constant_name)(ContainerHandle, size_t, const char**);
  AotiError (*constant_from_folded)(ContainerHandle, size_t, bool*);
  // Null in images that were not made by AOTInductor. The size on the host is a multiple of 64.
  AotiError (*constant_dtype)(ContainerHandle, size_t, int32_t*);
  AotiError (*constant_nbytes)(ContainerHandle, size_t, size_t*);
  AotiError (*update_constants)(ContainerHandle, const ConstantMapEntry*, size_t, bool use_inactive,
                                bool validate_full_update);
  RunFunction* run;
  AotiError (*last_error)(const char**);  // null before torch 2.13
};

}  // namespace etcuda
