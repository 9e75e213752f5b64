// The 64 bytes before the flatbuffer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace etcuda {

constexpr size_t kHeaderSize = 64;
constexpr size_t kImageAlignment = 64;
constexpr uint32_t kFormatVersion = 2;
// Of a description with steps, which a runtime that knows none refuses.
constexpr uint32_t kFormatVersionOfSteps = 3;
constexpr uint8_t kMagic[8] = {'E', 'T', 'C', 'U', 'D', 'A', 0, kFormatVersion};

struct Payload {
  const uint8_t* data;
  size_t nbytes;
};

// Checks magic, sizes and the payload's hash; throws Failure.
Payload read_header(const uint8_t* data, size_t nbytes);

}  // namespace etcuda
