// Logits in bfloat16 as float32, of any number.
#include <etcuda/llm/logits.h>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"

TEST(bfloat16_is_widened_whole_for_any_number_of_logits) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{200}}) {
    std::vector<uint16_t> halves(count);
    for (size_t i = 0; i < count; ++i)
      halves[i] = static_cast<uint16_t>((0x80 + (16000 + 131 * i) % 0x7e00) | (i % 2 << 15));
    std::vector<float> row(count, -1.0f);
    etcuda::widen_bfloat16(reinterpret_cast<const char*>(halves.data()), row);
    for (size_t i = 0; i < count; ++i) {
      // Sign, eight bits of exponent, seven of fraction.
      const int exponent = (halves[i] >> 7) & 0xff;
      const float expected = std::ldexp(1.0f + static_cast<float>(halves[i] & 0x7f) / 128.0f, exponent - 127);
      CHECK_EQ(row[i], halves[i] & 0x8000 ? -expected : expected);
    }
  }
}
