// The kernel of etcuda::check_value, which partitioner/value_checks.py puts beside a model's assertions about
// values: it fails the call with a sentence where one does not hold.
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include <cinttypes>
#include <cstring>
#include <exception>
#include <string>

#include "core/failure.h"
#include "core/last_error.h"

namespace etcuda {
namespace {

using namespace ::executorch::runtime;  // NOLINT: the interface's own vocabulary

constexpr const char* kName = "etcuda::check_value.out";
// The schema's: condition, whether it must hold, message, values, out.
constexpr size_t kArguments = 5;

template <typename T>
T take(const Result<T>& found) {
  if (!found.ok()) {
    fail(Error::InvalidProgram,
         "%s: expected a condition, a text and numbers, got others. The program is damaged: export it again.",
         kName);
  }
  return *found;
}

// The message with each value in the place of a pair of braces.
std::string filled(std::string_view message, ::executorch::aten::ArrayRef<int64_t> values) {
  std::string text;
  size_t next = 0;
  for (size_t i = 0; i < message.size(); ++i) {
    if (message.compare(i, 2, "{}") == 0 && next < values.size()) {
      text += format("%" PRId64, values[next++]);
      ++i;
    } else {
      text += message[i];
    }
  }
  return text;
}

void check(Span<EValue*> stack) {
  if (stack.size() < kArguments) {
    fail(Error::InvalidProgram, "%s: expected %zu arguments, got %zu. Export the program again.", kName,
         kArguments, stack.size());
  }
  // A comparison of ExecuTorch's makes a bool; what is known at export may be a number.
  const EValue& condition = *stack[0];
  const bool is = condition.isInt() ? take(condition.tryToInt()) != 0 : take(condition.tryToBool());
  if (is == take(stack[1]->tryToBool())) return;
  fail(Error::InvalidArgument, "%s",
       filled(take(stack[2]->tryToString()), take(stack[3]->tryToIntList())).c_str());
}

void check_value(KernelRuntimeContext& context, Span<EValue*> stack) noexcept {
  try {
    check(stack);
  } catch (const Failure& failure) {
    report_error(failure.what());
    context.fail(failure.code());
  } catch (const std::exception& error) {
    report_error(error.what());
    context.fail(Error::Internal);
  }
}

// ExecuTorch ends the process where a name is registered twice, as when the library is loaded from two
// places, and logs an error where it is asked for a name that it does not know.
Error register_once() {
  for (const Kernel& kernel : get_registered_kernels()) {
    if (kernel.name_ != nullptr && std::strcmp(kernel.name_, kName) == 0) return Error::Ok;
  }
  return register_kernel(Kernel(kName, check_value));
}

[[maybe_unused]] const Error registered = register_once();

}  // namespace
}  // namespace etcuda
