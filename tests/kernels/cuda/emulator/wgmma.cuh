// The product of a warpgroup, as kernels/cuda writes it for up to BLOCK_M tokens of MMA_DTYPE: 64 rows by 16
// columns in registers, times 16 columns by tokens in shared memory.

#pragma once

#include "ptx.cuh"

namespace emulator {

#if F16_ACCUMULATE
typedef u32 Word;  // of two sums
constexpr int kTokensOfWord = 4;
constexpr Word kUnknown = 0x7fff7fff;
#else
typedef float Word;
constexpr int kTokensOfWord = 2;
const Word kUnknown = NAN;
#endif
constexpr int kWords = BLOCK_M / kTokensOfWord;

// A thread's sums between the first wgmma and the wait: the registers that get them, and the sums in them.
struct PendingWgmma {
  Word* registers = nullptr;
  int words = 0;
  Word sums[kWords];
  bool fenced = false;
};
extern PendingWgmma pending[kMaxThreads];
extern SyncPoint warpgroups[kMaxThreads / 128];
extern u32 operands[kMaxThreads][4];

inline float operand(u16 bits) {
  return (float)(MMA_DTYPE == BFLOAT16 ? Bfloat::load(bits) : Half::load(bits));
}

// Adds to the sum of a thread's row (0 or 1) and token 8 j + 2 t + e. Sums in float16 are rounded each time.
inline void add(Word (&sums)[kWords], int j, int row, int e, double number) {
#if F16_ACCUMULATE
  Word& word = sums[2 * j + row];
  const u16 sum = Half::store(Half::load((u16)(word >> 16 * e)) + number);
  word = (word & ~(0xffffu << 16 * e)) | (Word)sum << 16 * e;
#else
  sums[4 * j + 2 * row + e] += (float)number;
#endif
}

// The number in row n and column k of an operand in shared memory.
inline float described(u64 description, int n, int k) {
  u32 at = (u32)(description & 0x3fff) * 16 + n * 128 + k * 2;
  at ^= (at >> 7 & 7) << 4;
  return operand((u16)ld_shared_u16(at));
}

}  // namespace emulator

inline void wgmma_fence() {
  emulator::pending[threadIdx.x].fenced = true;
}

template <int Words>
inline void wgmma(emulator::Word (&d)[Words], const u32 (&a)[4], u64 b) {
  using namespace emulator;
  static_assert(Words <= kWords, "no more tokens than BLOCK_M");
  PendingWgmma& mine = pending[threadIdx.x];
  if (!mine.fenced) fail("expected a fence in front of a wgmma whose registers were written");
  if (mine.registers == nullptr) {
    mine.registers = d;
    mine.words = Words;
    std::memcpy(mine.sums, d, sizeof d);
    for (Word& word : d) word = kUnknown;
  }
  if (mine.registers != d) fail("expected a wait between wgmmas with different sums");
  std::memcpy(operands[threadIdx.x], a, sizeof a);
  SyncPoint& point = warpgroups[threadIdx.x / 128];
  block.sync(point, 128);
  // Of four lanes, lane t has columns 2t, 2t + 1 of rows r and r + 8, then 2t + 8, 2t + 9.
  const int quad = threadIdx.x / 4 * 4, t = threadIdx.x % 4;
  for (int row = 0; row < 2; row++) {
    float w[16];
    for (int k = 0; k < 16; k++) {
      const u32 pair = operands[quad + k % 8 / 2][row + k / 8 * 2];
      w[k] = operand((u16)(pair >> (k % 2 * 16)));
    }
    for (int j = 0; j < Words * kTokensOfWord / 8; j++)
      for (int e = 0; e < 2; e++) {
        double number = 0;
        for (int k = 0; k < 16; k++) number += (double)w[k] * described(b, j * 8 + t * 2 + e, k);
        add(mine.sums, j, row, e, number);
      }
  }
  block.sync(point, 128);
}

inline void wgmma_commit() {
  emulator::pending[threadIdx.x].fenced = false;
}

inline void wgmma_wait() {
  emulator::PendingWgmma& mine = emulator::pending[threadIdx.x];
  if (mine.registers != nullptr) std::memcpy(mine.registers, mine.sums, mine.words * sizeof *mine.sums);
  mine.registers = nullptr;
}
