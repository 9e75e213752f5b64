// The delegate blob, read and checked: plain values that the rest of the runtime can trust. See docs/blob.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "blob/sizes.h"
#include "core/dtype.h"
#include "core/sha256.h"

namespace etcuda {

struct DimSpec {
  int64_t min;
  int64_t max;
  int32_t size;  // position in BlobSpec::sizes, or -1
};

struct ValueSpec {
  std::string name;
  DType dtype;
  std::vector<DimSpec> dims;
  std::vector<uint8_t> dim_order;  // as long as dims
};

struct StorageSpec {
  uint64_t nbytes;
  std::string data_key;  // empty: all zeros
  Digest sha256;
  bool is_mutable;
  std::string state_name;
};

struct ConstantSpec {
  std::string name;
  std::string fqn;
  uint32_t storage;
  DType dtype;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t storage_offset;
  uint64_t nbytes;  // from the first element to the end of the last
  uint64_t end;     // of the last element, from the start of the storage
};

enum class CodeKind { kCubin, kPtx, kNative };

struct ImageSpec {
  std::string target;
  DeviceType device;
  int32_t compute_capability;
  CodeKind code_kind;
  std::string machine;
  std::string isa;
  const uint8_t* data;  // borrowed from the blob
  size_t nbytes;
  Digest sha256;
  uint32_t part = 0;
  uint32_t shared_memory = 0;  // bytes a block, the most that a kernel takes
  std::string largest_kernel;  // the one that takes it
};

// A call of one part. Values are numbered: inputs, constants, then what the steps make, in their order.
struct StepSpec {
  static constexpr uint32_t kDropped = UINT32_MAX;

  uint32_t part;
  std::vector<uint32_t> inputs;   // numbers below those that this step makes
  std::vector<uint32_t> outputs;  // the next numbers, in order, or kDropped
};

struct BlobSpec {
  std::string method;
  std::vector<ValueSpec> inputs;
  std::vector<ValueSpec> outputs;
  std::vector<StorageSpec> storages;
  std::vector<ConstantSpec> constants;
  std::vector<ImageSpec> images;
  // SHA-256 of the description with those of the images as zeros.
  Digest description;
  bool graph_capturable = false;
  bool allow_tf32 = false;
  // Positions of numbers among the arguments of a call that nothing takes; ascending, before the outputs.
  std::vector<uint32_t> ignored_arguments;
  std::vector<SizeSpec> sizes;       // each reads inputs and sizes before it
  std::vector<SizeSpec> conditions;  // read inputs and sizes
  std::vector<StepSpec> steps;       // empty: there is one part, which binds the constants itself
  std::vector<uint32_t> results;     // with steps: the value of each output
  size_t num_values = 0;             // with steps: of all kinds together
};

// Reads `nbytes` bytes. Throws Failure(DelegateInvalidCompatibility or InvalidProgram) on anything that
// docs/blob.md does not allow; whatever the bytes are, reads none outside of them.
BlobSpec read_blob(const void* data, size_t nbytes);

}  // namespace etcuda
