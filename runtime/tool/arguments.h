// Values of command lines.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "tool/options.h"

namespace etcuda_runner {

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (;;) {
    const size_t end = text.find(separator, start);
    parts.push_back(text.substr(start, end == std::string::npos ? end : end - start));
    if (end == std::string::npos) return parts;
    start = end + 1;
  }
}

inline int64_t parse_number(const std::string& name, const std::string& text, int64_t least, int64_t most) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < least || value > most) {
    throw RunnerError(kUsage, name + ": expected a whole number from " + std::to_string(least) + " to " +
                                  std::to_string(most) + ", got '" + text + "'.");
  }
  return value;
}

inline double parse_real(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0')
    throw RunnerError(kUsage, name + ": expected a number, got '" + text + "'.");
  return value;
}

}  // namespace etcuda_runner
