// Sizes that are known only at a call: small programs over the sizes of the inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace etcuda {

// The schema's SizeOp, which says what each does.
enum class SizeOp : uint8_t {
  kConstant,
  kInput,
  kSize,
  kAdd,
  kSubtract,
  kMultiply,
  kFloorDivide,
  kExactDivide,
  kModulo,
  kMinimum,
  kMaximum,
  kEqual,
  kLess,
  kLessEqual,
  kNot,
};

struct SizeStep {
  int64_t value;  // of a constant; the position of an input or of a size
  SizeOp op;
  uint8_t dim;  // of an input
};

struct SizeSpec {
  std::string text;
  std::vector<SizeStep> steps;
};

constexpr size_t kMaxSizeSteps = 256;
constexpr size_t kMaxSizeDepth = 16;

// Values that a step takes from the stack; each pushes one.
size_t arity(SizeOp op);

enum class SizeError { kNone, kOverflow, kZeroDivisor, kRest };

// Runs steps that read_blob accepted.
//   input_size(position, dim) and size(position) give what the steps push.
template <typename InputSize, typename Size>
SizeError run_steps(const std::vector<SizeStep>& steps, const InputSize& input_size, const Size& size,
                    int64_t* result);

// The result of an operator on its operands; `b` is ignored by those that take one.
SizeError apply(SizeOp op, int64_t a, int64_t b, int64_t* result);

template <typename InputSize, typename Size>
SizeError run_steps(const std::vector<SizeStep>& steps, const InputSize& input_size, const Size& size,
                    int64_t* result) {
  int64_t stack[kMaxSizeDepth] = {};
  size_t depth = 0;
  for (const SizeStep& step : steps) {
    int64_t pushed = step.value;
    if (step.op == SizeOp::kInput) {
      pushed = input_size(static_cast<size_t>(step.value), step.dim);
    } else if (step.op == SizeOp::kSize) {
      pushed = size(static_cast<size_t>(step.value));
    } else if (step.op != SizeOp::kConstant) {
      const size_t taken = arity(step.op);
      depth -= taken;
      const SizeError error = apply(step.op, stack[depth], stack[depth + taken - 1], &pushed);
      if (error != SizeError::kNone) return error;
    }
    stack[depth++] = pushed;
  }
  *result = stack[0];
  return SizeError::kNone;
}

}  // namespace etcuda
