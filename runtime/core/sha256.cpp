#include "core/sha256.h"

#include <cpuid.h>

#include <cstring>

#include "core/sha256_blocks.h"

namespace etcuda {

const uint32_t kSha256Round[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

namespace {

inline uint32_t rotate(uint32_t x, int n) {
  return (x >> n) | (x << (32 - n));
}

void compress(uint32_t state[8], const uint8_t* block) {
  uint32_t w[64];
  for (int i = 0; i < 16; ++i) {
    uint32_t big_endian;
    std::memcpy(&big_endian, block + 4 * i, 4);
    w[i] = __builtin_bswap32(big_endian);
  }
  for (int i = 16; i < 64; ++i) {
    const uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 64; ++i) {
    const uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Round[i] + w[i];
    const uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + t1;
    d = c;
    c = b;
    b = a;
    a = t1 + t2;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}

void hash_blocks(uint32_t* state, const uint8_t* data, size_t blocks) {
  sha256_x86_runs() ? sha256_blocks_x86(state, data, blocks) : sha256_blocks_portable(state, data, blocks);
}

}  // namespace

void sha256_blocks_portable(uint32_t* state, const uint8_t* data, size_t blocks) {
  for (; blocks > 0; --blocks, data += Sha256::kBlock) compress(state, data);
}

bool sha256_x86_runs() {
  static const bool runs = [] {
    unsigned a, b, c, d;
    // Leaf 1 has SSSE3 and SSE4.1 in bits 9 and 19 of ecx, leaf 7 SHA in bit 29 of ebx.
    const bool has_sse = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 9 & c >> 19 & 1u) != 0;
    return has_sse && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1u) != 0;
  }();
  return runs;
}

Sha256::Sha256(const void* data, size_t nbytes)
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
      next_(static_cast<const uint8_t*>(data)),
      left_(nbytes),
      nbytes_(nbytes) {}

void Sha256::advance(size_t blocks) {
  hash_blocks(state_.data(), next_, blocks);
  next_ += blocks * kBlock;
  left_ -= blocks * kBlock;
}

void Sha256::advance_both(Sha256& first, Sha256& second, size_t blocks) {
  if (!sha256_x86_runs()) {
    first.advance(blocks);
    second.advance(blocks);
    return;
  }
  sha256_blocks_x86(first.state_.data(), first.next_, second.state_.data(), second.next_, blocks);
  for (Sha256* each : {&first, &second}) {
    each->next_ += blocks * kBlock;
    each->left_ -= blocks * kBlock;
  }
}

Digest Sha256::finish() {
  advance(blocks_left());
  uint8_t tail[2 * kBlock] = {};
  if (left_ != 0) std::memcpy(tail, next_, left_);
  tail[left_] = 0x80;
  const size_t blocks = left_ < 56 ? 1 : 2;
  const uint64_t bits = __builtin_bswap64(nbytes_ * 8);
  std::memcpy(tail + blocks * kBlock - 8, &bits, 8);
  hash_blocks(state_.data(), tail, blocks);
  Digest digest;
  for (size_t i = 0; i < state_.size(); ++i) {
    const uint32_t word = __builtin_bswap32(state_[i]);
    std::memcpy(digest.data() + 4 * i, &word, 4);
  }
  return digest;
}

Digest sha256(const void* data, size_t nbytes) {
  return Sha256(data, nbytes).finish();
}

std::string to_hex(const Digest& digest) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(64);
  for (const uint8_t byte : digest) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

std::string shortened(const Digest& digest) {
  return to_hex(digest).substr(0, 12) + "...";
}

}  // namespace etcuda
