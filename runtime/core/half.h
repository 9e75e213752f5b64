// Conversions between float and the two 16-bit floating-point formats, rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace etcuda {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t wide = float_to_bits(value);
    const bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return bits_to_float(static_cast<uint32_t>(bits) << 16); }
};

struct Float16 {
  uint16_t bits;
  Float16() = default;
  explicit Float16(float value) {
    const uint32_t wide = float_to_bits(value);
    const uint32_t sign = wide >> 16 & 0x8000u;
    const uint32_t magnitude = wide & 0x7fffffffu;
    uint32_t narrow;
    if (magnitude >= 0x47800000u) {
      narrow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) {
      // Adding a half lines the bits of a subnormal up with the end of the mantissa, rounded by the addition.
      narrow = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      narrow = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    bits = static_cast<uint16_t>(sign | narrow);
  }
  explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x400u) return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
    return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * 0x1p-24f));
  }
};

}  // namespace etcuda
