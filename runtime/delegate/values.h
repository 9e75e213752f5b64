// The arguments of one call, checked against what the blob declares.
#pragma once

#include <executorch/runtime/core/evalue.h>

#include <vector>

#include "blob/blob.h"
#include "memory/tensor.h"

namespace etcuda {

using EValue = ::executorch::runtime::EValue;
using EtTensor = ::executorch::aten::Tensor;

// What an input or output tensor of ExecuTorch looks like, in this runtime's types.
struct ArgumentView {
  void* data = nullptr;
  size_t nbytes = 0;
  int64_t rank = 0;
  int64_t sizes[kMaxTensorRank] = {};
  int64_t strides[kMaxTensorRank] = {};
  DeviceType device = kHost;
  int device_index = 0;
};

// Where the tensor's bytes are on a GPU; 0 for one on the host.
int64_t device_address(const EtTensor& tensor);

// Checks kind, dtype, rank, bounds and memory order of input `index`. Throws Failure(InvalidArgument). A
// number where a 0-d value is declared is returned as a view of `scalar` (8 bytes), on the host.
ArgumentView check_input(const ValueSpec& spec, size_t index, const EValue& value, void* scalar);

// Checks dtype, rank and bounds of what the compiled model returned; a mismatch is the exporter's fault, not
// the caller's.
void check_output(const ValueSpec& spec, size_t index, const Tensor& tensor);

// Resizes ExecuTorch's output tensor to the shape of `tensor` and describes it. Throws Failure.
ArgumentView prepare_output(const ValueSpec& spec, size_t index, EValue& value, const Tensor& tensor);

}  // namespace etcuda
