// float16 and bfloat16 as the hardware rounds them, in double, which holds what they hold and their products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

inline double half_to_double(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline uint16_t half_from_double(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520) return sign | 0x7c00;
  if (size == 0) return sign;
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = std::max(exponent - 1, -14);
  // To a multiple of the last place, halves to even; what is rounded up to the next power of two carries
  // over.
  const double places = std::nearbyint(std::ldexp(size, 10 - exponent));
  return sign | (uint16_t)(((exponent + 14) << 10) + (int)places);
}

inline uint16_t bfloat_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline double bfloat_to_double(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Rounded once, as the hardware rounds the sum of a product: not to a float in between.
inline uint16_t bfloat_from_double(double value) {
  if (std::isnan(value)) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size >= std::ldexp(511, 119)) return sign | 0x7f80;
  if (size == 0) return sign;
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = std::max(exponent - 1, -126);
  const double places = std::nearbyint(std::ldexp(size, 7 - exponent));
  return sign | (uint16_t)(((exponent + 126) << 7) + (int)places);
}

}  // namespace emulator
