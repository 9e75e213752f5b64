// Sizes that the macros of gemm.cu give, and what lies where in shared memory.

#pragma once

#include "ptx.cuh"

#define SYMMETRIC 0
#define ZERO_POINT 1
#define MINIMUM 2

namespace {

constexpr int kWarps =
    WARPGROUPS * 4;  // that multiply; one more brings activations, one sees to shared tiles
constexpr int kThreads = kWarps * 32 + 64;
constexpr int kBlockN = WARPGROUPS * 64;  // weight rows of a tile
constexpr int kSteps = K / 256;
static_assert(kSteps < 256, "semaphores count who shares them in eight bits");
constexpr int kZero = OFFSET == MINIMUM      ? 16
                      : OFFSET == ZERO_POINT ? 8
                                             : 0;  // bytes of zeros of a row and step

// Shared memory. A stage of weights is a step of 256 columns, one of activations half a step. Scales of four
// steps are copied at once: rows of them start anywhere in a sector, and of short k_segments most would be
// read in vain. Their ring is longer by that, and lies row by row; of seven stages because eight rows of so
// many lie in different banks.
constexpr int kUnit = 4;
constexpr int kScaleStages = 7;
static_assert(STAGES + kUnit - 1 <= kScaleStages, "no scales are written that others are still read");
constexpr int kXBytes = BLOCK_M * 256;
constexpr int kXTogether = X_STAGES % 2 == 0 ? 2 : 1;  // that a step takes together, where they come in pairs
constexpr int kXTurns = X_STAGES / kXTogether;
constexpr int kWBytes = kBlockN * 128;
constexpr int kSRow = kScaleStages * 16;
constexpr int kZRow = kScaleStages * kZero;
constexpr int kXAt = 0;
constexpr int kWAt = kXAt + X_STAGES * kXBytes;
constexpr int kSAt = kWAt + STAGES * kWBytes;
constexpr int kZAt = kSAt + kBlockN * kSRow;
constexpr int kFullAt = kZAt + kBlockN * kZRow;
constexpr int kEmptyAt = kFullAt + X_STAGES * 8;
constexpr int kReadyAt = kEmptyAt + X_STAGES * 8;
constexpr int kStartedAt = kReadyAt + 8;
constexpr int kClearAt = kStartedAt + 8;
constexpr int kOwnAt = kClearAt + 8;  // chunks that the program sums
constexpr int kTasksAt = kOwnAt + 8;  // of two shared tiles, 16 bytes each
constexpr int kFactorAt = kTasksAt + 32;
// Of a warp; of many tokens there is no room for them, and less need.
constexpr int kFactorBytes = BLOCK_M <= 64 ? BLOCK_M * 4 : 0;
static_assert(kFactorAt % 16 == 0, "read 16 bytes at a time");
static_assert(kFactorAt + kWarps * kFactorBytes == SHARED_BYTES, "the host computes the same");

// Sums of a thread: of two tokens in a word, or of one.
template <bool Half>
struct SumOf {
  typedef float Word;
};
template <>
struct SumOf<true> {
  typedef u32 Word;
};
typedef SumOf<HALF_SUMS != 0>::Word Sum;
constexpr int kSums = HALF_SUMS ? BLOCK_M / 4 : BLOCK_M / 2;
// Steps that are summed before sums go to float32: those whose activations are divided by one power of two.
// In float16 sums become less exact with each product, by 2^-12 of what they are.
constexpr int kRun = HALF_SUMS ? RUN : kSteps;

typedef Number<OUT>::Bits Out;
typedef Number<BIAS>::Bits Bias;

}  // namespace
