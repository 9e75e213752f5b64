#include "blob/header.h"

#include <cinttypes>
#include <cstring>

#include "core/failure.h"
#include "core/sha256.h"

namespace etcuda {
namespace {

template <typename T>
T load(const uint8_t* address) {
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}

}  // namespace

Payload read_header(const uint8_t* data, size_t nbytes) {
  if (data == nullptr || nbytes < kHeaderSize) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's bytes end after %zu of at least %zu bytes. The .pte file is truncated: copy or "
         "export it again.",
         nbytes, kHeaderSize);
  }
  if (std::memcmp(data, kMagic, 7) != 0) {
    fail(ErrorCode::DelegateInvalidCompatibility,
         "the delegate's bytes do not start with ETCUDA. They were not written by etcuda's exporter, or are "
         "damaged: export the model again.");
  }
  if (data[7] != kMagic[7]) {
    fail(ErrorCode::DelegateInvalidCompatibility,
         "the delegate has blob format %u, this runtime reads format %u. Export the model again with the "
         "etcuda "
         "version that is installed here, or install the one that made it.",
         data[7], kMagic[7]);
  }
  if (load<uint32_t>(data + 8) != kHeaderSize || load<uint32_t>(data + 12) != 0 ||
      load<uint64_t>(data + 56) != 0) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's header is damaged: expected size 64 and reserved fields 0. Export the model again.");
  }
  const auto payload_size = load<uint64_t>(data + 16);
  if (payload_size > nbytes - kHeaderSize) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's description should have %" PRIu64
         " bytes but only %zu are there. The .pte file is "
         "truncated: copy or export it again.",
         payload_size, nbytes - kHeaderSize);
  }
  const Payload payload{data + kHeaderSize, static_cast<size_t>(payload_size)};
  Digest expected;
  std::memcpy(expected.data(), data + 24, expected.size());
  const Digest got = sha256(payload.data, payload.nbytes);
  if (got != expected) {
    fail(ErrorCode::InvalidProgram,
         "the delegate's description is damaged: expected SHA-256 %s, got %s. Copy or export the .pte file "
         "again.",
         to_hex(expected).c_str(), to_hex(got).c_str());
  }
  return payload;
}

}  // namespace etcuda
