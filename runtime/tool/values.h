// The inputs of a method, read from files, and its outputs, written to files.
#pragma once

#include <executorch/extension/module/module.h>

#include <memory>
#include <vector>

#include "tool/options.h"

namespace etcuda_runner {

using executorch::runtime::EValue;

// Owns what the values point to.
class Inputs {
 public:
  // Throws RunnerError(kInputFailed or kUsage).
  Inputs(const Options& options, const executorch::runtime::MethodMeta& meta);
  const std::vector<EValue>& values() const { return values_; }

 private:
  struct Held {
    std::vector<uint8_t> bytes;
    std::vector<int32_t> sizes;
    std::vector<uint8_t> dim_order;
    std::vector<int32_t> strides;
    std::unique_ptr<executorch::aten::TensorImpl> tensor;
  };
  void add_tensor(const Options& options, size_t index, const executorch::runtime::TensorInfo& info);
  void add_number(const Options& options, size_t index, executorch::runtime::Tag tag);

  std::vector<std::unique_ptr<Held>> held_;
  std::vector<EValue> values_;
};

// Writes each tensor to a temporary file that is renamed when complete. Throws RunnerError(kOutputFailed).
void write_outputs(const std::string& path, const std::vector<EValue>& outputs);

}  // namespace etcuda_runner
