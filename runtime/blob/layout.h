// Arithmetic on untrusted sizes and strides, with overflow as an answer.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace etcuda {

inline std::optional<int64_t> checked_multiply(int64_t a, int64_t b) {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

inline std::optional<int64_t> checked_add(int64_t a, int64_t b) {
  int64_t result;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// Elements from the first to one past the last that a view with these (non-negative) sizes and strides
// touches.
inline std::optional<int64_t> view_extent(const int64_t* sizes, const int64_t* strides, size_t rank) {
  int64_t last = 0;
  for (size_t i = 0; i < rank; ++i) {
    if (sizes[i] == 0) return 0;
    const auto step = checked_multiply(sizes[i] - 1, strides[i]);
    if (!step) return std::nullopt;
    const auto sum = checked_add(last, *step);
    if (!sum) return std::nullopt;
    last = *sum;
  }
  return checked_add(last, 1);
}

}  // namespace etcuda
