// Hashing whole blocks of 64 bytes: in plain C++, and with the SHA instructions of an x86-64 processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace etcuda {

extern const uint32_t kSha256Round[64];

void sha256_blocks_portable(uint32_t* state, const uint8_t* data, size_t blocks);

// Whether this processor has the instructions that the two functions below use.
bool sha256_x86_runs();
void sha256_blocks_x86(uint32_t* state, const uint8_t* data, size_t blocks);
// Two messages at once.
void sha256_blocks_x86(uint32_t* state, const uint8_t* data, uint32_t* other_state, const uint8_t* other_data,
                       size_t blocks);

}  // namespace etcuda
