// Compiled for processors with SHA instructions: nothing of the standard library is instantiated here, so
// that no such code leaks into functions that others share.
#include <immintrin.h>

#include "core/sha256_blocks.h"

namespace etcuda {
namespace {

__m128i load(const void* address) {
  return _mm_loadu_si128(static_cast<const __m128i*>(address));
}

void store(void* address, __m128i value) {
  _mm_storeu_si128(static_cast<__m128i*>(address), value);
}

// The state of N messages as the instructions want it: words a b e f in one register, c d g h in another.
template <int N>
void hash_blocks(uint32_t* const* states, const uint8_t** data, size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i abef[N], cdgh[N];
  for (int n = 0; n < N; ++n) {
    const __m128i low = _mm_shuffle_epi32(load(states[n]), 0xB1);
    const __m128i high = _mm_shuffle_epi32(load(states[n] + 4), 0x1B);
    abef[n] = _mm_alignr_epi8(low, high, 8);
    cdgh[n] = _mm_blend_epi16(high, low, 0xF0);
  }
  for (; blocks > 0; --blocks) {
    __m128i words[N][4], a[N], c[N];
    for (int n = 0; n < N; ++n) {
      a[n] = abef[n];
      c[n] = cdgh[n];
      for (int i = 0; i < 4; ++i) words[n][i] = _mm_shuffle_epi8(load(data[n] + 16 * i), big_endian);
      data[n] += 64;
    }
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      const __m128i round = load(kSha256Round + 4 * r);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        __m128i& now = words[n][r & 3];
        if (r >= 4) {
          const __m128i last = words[n][(r + 3) & 3];
          const __m128i seven_before = _mm_alignr_epi8(last, words[n][(r + 2) & 3], 4);
          now = _mm_sha256msg1_epu32(now, words[n][(r + 1) & 3]);
          now = _mm_sha256msg2_epu32(_mm_add_epi32(now, seven_before), last);
        }
        const __m128i sum = _mm_add_epi32(now, round);
        c[n] = _mm_sha256rnds2_epu32(c[n], a[n], sum);
        a[n] = _mm_sha256rnds2_epu32(a[n], c[n], _mm_shuffle_epi32(sum, 0x0E));
      }
    }
    for (int n = 0; n < N; ++n) {
      abef[n] = _mm_add_epi32(abef[n], a[n]);
      cdgh[n] = _mm_add_epi32(cdgh[n], c[n]);
    }
  }
  for (int n = 0; n < N; ++n) {
    const __m128i low = _mm_shuffle_epi32(abef[n], 0x1B);
    const __m128i high = _mm_shuffle_epi32(cdgh[n], 0xB1);
    store(states[n], _mm_blend_epi16(low, high, 0xF0));
    store(states[n] + 4, _mm_alignr_epi8(high, low, 8));
  }
}

}  // namespace

void sha256_blocks_x86(uint32_t* state, const uint8_t* data, size_t blocks) {
  hash_blocks<1>(&state, &data, blocks);
}

void sha256_blocks_x86(uint32_t* state, const uint8_t* data, uint32_t* other_state, const uint8_t* other_data,
                       size_t blocks) {
  uint32_t* const states[2] = {state, other_state};
  const uint8_t* both[2] = {data, other_data};
  hash_blocks<2>(states, both, blocks);
}

}  // namespace etcuda
