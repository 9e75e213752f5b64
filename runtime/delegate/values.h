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

// Sizes that the symbols of this call turned out to have.
class SymbolTable {
 public:
  void clear() { sizes_.clear(); }
  // Throws Failure if the symbol has another size already.
  void bind(int32_t symbol, int64_t size, const char* role, const ValueSpec& spec, size_t dim);

 private:
  struct Known {
    int32_t symbol;
    int64_t size;
    const std::string* name;
    size_t dim;
  };
  std::vector<Known> sizes_;  // few, and the memory is kept from call to call
};

// Checks kind, dtype, rank, bounds, symbols and memory order of input `index`. Throws
// Failure(InvalidArgument). A number where a 0-d value is declared is returned as a view of `scalar` (8
// bytes), on the host.
ArgumentView check_input(const ValueSpec& spec, size_t index, const EValue& value, SymbolTable& symbols,
                         void* scalar);

// Checks what the compiled model returned; a mismatch is the exporter's fault, not the caller's.
void check_output(const ValueSpec& spec, size_t index, const Tensor& tensor, SymbolTable& symbols);

// Resizes ExecuTorch's output tensor to the shape of `tensor` and describes it. Throws Failure.
ArgumentView prepare_output(const ValueSpec& spec, size_t index, EValue& value, const Tensor& tensor);

}  // namespace etcuda
