// The sizes of one call, and whether those of its tensors fit together.
#pragma once

#include <vector>

#include "blob/blob.h"
#include "delegate/values.h"

namespace etcuda {

class CallSizes {
 public:
  // Computes every size of the blob from the shapes of the inputs, and checks that the inputs have them and
  // fulfil the conditions. Throws Failure(InvalidArgument). Both arguments are used in later calls of
  // check_output.
  void compute(const BlobSpec& blob, const std::vector<ArgumentView>& inputs);

  // Checks what the compiled model returned; a mismatch is the exporter's fault, not the caller's.
  void check_output(size_t index, const int64_t* sizes) const;

 private:
  int64_t run(const SizeSpec& spec) const;
  void check_input(size_t index) const;
  void check_condition(const SizeSpec& condition) const;
  [[noreturn]] void fail_to_compute(const SizeSpec& spec, SizeError error) const;
  std::string sources(const SizeSpec& spec) const;
  void collect(const SizeSpec& spec, std::vector<bool>* seen, std::vector<SizeStep>* found) const;
  int64_t input_size(size_t index, size_t dim) const;

  const BlobSpec* blob_ = nullptr;
  const std::vector<ArgumentView>* inputs_ = nullptr;
  std::vector<int64_t> values_;  // of blob_->sizes; the memory is kept from call to call
};

}  // namespace etcuda
