// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace etcuda {

using Digest = std::array<uint8_t, 32>;

Digest sha256(const void* data, size_t nbytes);
std::string to_hex(const Digest& digest);

}  // namespace etcuda
