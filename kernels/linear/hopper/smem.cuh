// Constants that follow from the macros of gemm.cu, and the layout of shared memory.

#pragma once

#include "ptx.cuh"

#include "int4.cuh"

namespace {

constexpr int kMmaWarps = WARPGROUPS * 4;  // one more warp loads activations, and one plans the fixup
constexpr int kThreads = kMmaWarps * 32 + 2 * 32;
constexpr int kBlockN = WARPGROUPS * 64;  // weight rows of a tile
constexpr int kSteps = K / 256;           // of a tile; a step is 256 columns of K
static_assert(kSteps < 256, "a semaphore counts the CTAs that share a tile in eight bits");
constexpr int kZeroBytes = OFFSET == MINIMUM ? 16 : OFFSET == ZERO_POINT ? 8 : 0;  // of a row and a step

// A stage of weights holds a step, a stage of activations half a step. One copy loads the scales of
// kScaleSteps steps: a row of scales may start anywhere in a sector of 32 bytes, so most of a sector would be
// loaded for nothing otherwise. So the ring of scales has at least kScaleSteps - 1 stages more than that of
// weights. It lies row by row; with seven stages, eight rows lie in different banks.
constexpr int kScaleSteps = 4;
constexpr int kScaleStages = 7;
static_assert(STAGES + kScaleSteps - 1 <= kScaleStages, "no scales are overwritten that are still needed");
constexpr int kXStageBytes = BLOCK_M * 256;
constexpr int kXGroup = X_STAGES % 2 == 0 ? 2 : 1;  // stages of activations that share a pipeline state
constexpr int kXGroups = X_STAGES / kXGroup;
constexpr int kWStageBytes = kBlockN * 128;
constexpr int kScaleRowBytes = kScaleStages * 16;
constexpr int kZeroRowBytes = kScaleStages * kZeroBytes;

// Byte offsets in shared memory.
constexpr int kSmemX = 0;
constexpr int kSmemW = kSmemX + X_STAGES * kXStageBytes;
constexpr int kSmemScales = kSmemW + STAGES * kWStageBytes;
constexpr int kSmemZeros = kSmemScales + kBlockN * kScaleRowBytes;
// Mbarriers of each stage of activations: it is loaded; all warps have read it.
constexpr int kSmemFull = kSmemZeros + kBlockN * kZeroRowBytes;
constexpr int kSmemEmpty = kSmemFull + X_STAGES * 8;
// Mbarriers of the fixup: the plan is complete; the first loads of activations are issued; the CTA's slots
// are clear.
constexpr int kSmemPlanned = kSmemEmpty + X_STAGES * 8;
constexpr int kSmemStarted = kSmemPlanned + 8;
constexpr int kSmemCleared = kSmemStarted + 8;
// The plan: bits of the chunks that the CTA sums, and at most two SharedTiles of 16 bytes.
constexpr int kSmemChunks = kSmemCleared + 8;
constexpr int kSmemSharedTiles = kSmemChunks + 8;
constexpr int kSmemFactors = kSmemSharedTiles + 2 * 16;
// Of a warp, for its TokenFactors. With more tokens there is no room for them, and less need.
constexpr int kFactorBytes = BLOCK_M <= 64 ? BLOCK_M * 4 : 0;
static_assert(kSmemFactors % 16 == 0, "loaded 16 bytes at a time");
static_assert(kSmemFactors + kMmaWarps * kFactorBytes == SHARED_BYTES, "the host computes the same size");

// An accumulator register: two sums in float16, or one in float32.
template <bool F16>
struct AccumulatorOf {
  typedef float Type;
};
template <>
struct AccumulatorOf<true> {
  typedef u32 Type;
};
typedef AccumulatorOf<F16_ACCUMULATE != 0>::Type Accumulator;
constexpr int kAccumulators = F16_ACCUMULATE ? BLOCK_M / 4 : BLOCK_M / 2;  // of a thread
// Steps of a k segment: activations of a segment are divided by one power of two, and the sums of a segment
// are added up in float32. (In float16 each addition adds an error of up to 2^-12 of the sum.)
constexpr int kSegmentSteps = F16_ACCUMULATE ? SEGMENT_STEPS : kSteps;

typedef Number<OUT_DTYPE>::Bits Out;
typedef Number<BIAS_DTYPE>::Bits Bias;

}  // namespace
