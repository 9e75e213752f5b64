#include "blob/sizes.h"

#include <algorithm>

namespace etcuda {
namespace {

SizeError divided(int64_t a, int64_t b, int64_t* quotient, int64_t* rest) {
  if (b == 0) return SizeError::kZeroDivisor;
  if (a == INT64_MIN && b == -1) return SizeError::kOverflow;
  *quotient = a / b;
  *rest = a % b;
  // C++ rounds towards zero.
  if (*rest != 0 && (*rest < 0) != (b < 0)) {
    --*quotient;
    *rest += b;
  }
  return SizeError::kNone;
}

}  // namespace

size_t arity(SizeOp op) {
  switch (op) {
    case SizeOp::kConstant:
    case SizeOp::kInput:
    case SizeOp::kSize:
      return 0;
    case SizeOp::kNot:
      return 1;
    default:
      return 2;
  }
}

SizeError apply(SizeOp op, int64_t a, int64_t b, int64_t* result) {
  int64_t quotient = 0;
  int64_t rest = 0;
  switch (op) {
    case SizeOp::kAdd:
      return __builtin_add_overflow(a, b, result) ? SizeError::kOverflow : SizeError::kNone;
    case SizeOp::kSubtract:
      return __builtin_sub_overflow(a, b, result) ? SizeError::kOverflow : SizeError::kNone;
    case SizeOp::kMultiply:
      return __builtin_mul_overflow(a, b, result) ? SizeError::kOverflow : SizeError::kNone;
    case SizeOp::kFloorDivide:
    case SizeOp::kExactDivide:
    case SizeOp::kModulo: {
      const SizeError error = divided(a, b, &quotient, &rest);
      if (error != SizeError::kNone) return error;
      if (op == SizeOp::kExactDivide && rest != 0) return SizeError::kRest;
      *result = op == SizeOp::kModulo ? rest : quotient;
      return SizeError::kNone;
    }
    case SizeOp::kMinimum:
      *result = std::min(a, b);
      return SizeError::kNone;
    case SizeOp::kMaximum:
      *result = std::max(a, b);
      return SizeError::kNone;
    case SizeOp::kEqual:
      *result = a == b;
      return SizeError::kNone;
    case SizeOp::kLess:
      *result = a < b;
      return SizeError::kNone;
    case SizeOp::kLessEqual:
      *result = a <= b;
      return SizeError::kNone;
    case SizeOp::kNot:
      *result = a == 0;
      return SizeError::kNone;
    case SizeOp::kConstant:
    case SizeOp::kInput:
    case SizeOp::kSize:
      break;
  }
  return SizeError::kNone;
}

}  // namespace etcuda
