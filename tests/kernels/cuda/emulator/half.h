// float16 and bfloat16 as the hardware rounds them, in double, which holds what they hold and their products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

// A sign, an exponent, and so many bits of a fraction; the exponent of one is Bias.
template <int Fraction, int Bias>
struct Format {
  static constexpr int kInfinity = (2 * Bias + 1) << Fraction;

  static double load(uint16_t bits) {
    const int exponent = (bits & 0x7fff) >> Fraction, fraction = bits & ((1 << Fraction) - 1);
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == 2 * Bias + 1) return fraction ? NAN : sign * INFINITY;
    const int whole = fraction + (exponent ? 1 << Fraction : 0);
    return sign * std::ldexp(whole, std::max(exponent, 1) - Bias - Fraction);
  }

  // Rounded once, halves to even.
  static uint16_t store(double value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (std::isinf(value)) return sign | kInfinity;
    if (size == 0) return sign;
    int exponent = 0;
    std::frexp(size, &exponent);
    exponent = std::max(exponent - 1, 1 - Bias);
    // What is rounded up to the next power of two carries over, at last into infinity.
    const double places = std::nearbyint(std::ldexp(size, Fraction - exponent));
    return sign | (uint16_t)std::min(((exponent + Bias - 1) << Fraction) + (int)places, kInfinity);
  }
};

typedef Format<10, 15> Half;
typedef Format<7, 127> Bfloat;

}  // namespace emulator
