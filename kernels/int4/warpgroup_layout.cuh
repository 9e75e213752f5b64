// Sizes that the macros of warpgroup.cu give, and what lies where in shared memory.

#pragma once

#include "ptx.cuh"

#define SYMMETRIC 0
#define ZERO_POINT 1
#define MINIMUM 2

namespace {

constexpr int kWarps = WARPGROUPS * 4;  // that multiply; one more brings activations
constexpr int kThreads = kWarps * 32 + 32;
constexpr int kBlockN = WARPGROUPS * 64;  // weight rows of a tile
constexpr int kSteps = K / 256;
constexpr int kZero = OFFSET == MINIMUM      ? 16
                      : OFFSET == ZERO_POINT ? 8
                                             : 0;  // bytes of zeros of a row and step
constexpr float kWeightFactor = 16.f;  // weights are multiplied by it, so that small ones stay normal numbers

// Shared memory. A stage of weights is a step of 256 columns, one of activations half a step. Scales of four
// steps are copied at once: rows of them start anywhere in a sector, and of short stretches most would be
// read in vain. Their ring is longer by that.
constexpr int kUnit = 4;
constexpr int kScaleStages = STAGES + kUnit - 1;
constexpr int kXBytes = BLOCK_M * 256;
constexpr int kWBytes = kBlockN * 128;
constexpr int kSBytes = kBlockN * 16;
constexpr int kZBytes = kBlockN * kZero;
constexpr int kXAt = 0;
constexpr int kWAt = kXAt + X_STAGES * kXBytes;
constexpr int kSAt = kWAt + STAGES * kWBytes;
constexpr int kZAt = kSAt + kScaleStages * kSBytes;
constexpr int kFullAt = kZAt + kScaleStages * kZBytes;
constexpr int kEmptyAt = kFullAt + X_STAGES * 8;
static_assert(kEmptyAt + X_STAGES * 8 == SHARED_BYTES, "the host computes the same");

typedef Number<OUT>::Bits Out;
typedef Number<BIAS>::Bits Bias;

}  // namespace
