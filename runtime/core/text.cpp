#include "core/text.h"

#include <cstdint>

namespace etcuda {
namespace {

bool continues(std::string_view text, size_t place) {
  return place < text.size() && (static_cast<uint8_t>(text[place]) & 0xC0) == 0x80;
}

// Bytes of the character at `place`; 0 if there is none of UTF-8 (RFC 3629), or one that should not be shown.
size_t character(std::string_view text, size_t place) {
  const auto first = static_cast<uint8_t>(text[place]);
  if (first < 0x80) return (first < 0x20 && first != '\t' && first != '\n') || first == 0x7F ? 0 : 1;
  size_t length = 0;
  if (first >= 0xC2 && first <= 0xDF) length = 2;
  if (first >= 0xE0 && first <= 0xEF) length = 3;
  if (first >= 0xF0 && first <= 0xF4) length = 4;
  for (size_t i = 1; i < length; ++i) {
    if (!continues(text, place + i)) return 0;
  }
  if (length < 2) return 0;
  const auto second = static_cast<uint8_t>(text[place + 1]);
  // Longer than needed, surrogates, and beyond U+10FFFF; and the control characters U+0080 to U+009F.
  const bool wrong = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                     (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F) ||
                     (first == 0xC2 && second < 0xA0);
  return wrong ? 0 : length;
}

}  // namespace

std::string printable(std::string_view text) {
  static const char digits[] = "0123456789abcdef";
  std::string shown;
  shown.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t length = character(text, i);
    if (length == 0) {
      const auto byte = static_cast<uint8_t>(text[i]);
      shown += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else {
      shown += text.substr(i, length);
    }
    i += length == 0 ? 1 : length;
  }
  return shown;
}

size_t whole_characters(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  size_t end = limit;
  while (end > 0 && continues(text, end)) --end;
  return end;
}

}  // namespace etcuda
