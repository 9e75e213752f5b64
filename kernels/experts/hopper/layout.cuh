// Constants that follow from the macros of grouped.cu, and the layout of shared memory.

#pragma once

#include "ptx.cuh"

#include "int4.cuh"

namespace {

constexpr int kMmaWarps = 16;  // four warpgroups, of 64 weight rows each
constexpr int kLoadWarps = 4;  // more, which load activations: one in each quarter of a multiprocessor
constexpr int kThreads = (kMmaWarps + kLoadWarps) * 32;
// Registers of their threads: with the 96 that each has at first, a wgmma would wait for the one in front.
constexpr int kMmaRegisters = 112, kLoadRegisters = 32;
static_assert(kMmaWarps * kMmaRegisters + kLoadWarps * kLoadRegisters <= (kMmaWarps + kLoadWarps) * 96,
              "those that are left are enough for those that take them");
constexpr int kBlockN = kMmaWarps * 16;                  // weight rows of a tile
constexpr int kFeatures = GATE ? kBlockN / 2 : kBlockN;  // features of a tile: with a gate two rows have one
constexpr int kTilesN = N / kFeatures;
static_assert(N % kFeatures == 0 && K % 256 == 0, "the host refuses other weights");
// A step is what a stage of weights holds, 128 bytes of each row; a stage of activations holds 128 columns.
constexpr bool kInt4 = BITS == 4;
constexpr int kSteps = K * BITS / 1024, kXSteps = K / 128;  // of a tile
constexpr u32 kRowBytes = K * BITS / 8;                     // of a row of the weight
constexpr int kScaleBytes = kInt4 ? 16 : 0;                 // of a row and a step
constexpr int kZeroBytes = OFFSET == MINIMUM ? 16 : OFFSET == ZERO_POINT ? 8 : 0;

// As in kernels/linear/hopper/smem.cuh: one copy loads the scales of kScaleSteps steps.
constexpr int kScaleSteps = 4;
constexpr int kScaleStages = 7;
static_assert(!kInt4 || STAGES + kScaleSteps - 1 <= kScaleStages,
              "no scales are overwritten that are still needed");
constexpr int kXStageBytes = BLOCK_M * 256;
constexpr int kWStageBytes = kBlockN * 128;
constexpr int kScaleRowBytes = kScaleStages * kScaleBytes;
constexpr int kZeroRowBytes = kScaleStages * kZeroBytes;

// Tiles of a CTA are known kAhead tiles before they are loaded: weights of up to STAGES - 1 steps, which may
// be as many tiles, are loaded in front of the tile that is multiplied.
constexpr int kAhead = 4, kPlaces = 8;
static_assert(STAGES - 1 < kAhead, "a tile is known when its weights are loaded");
// A tile's rows of the output are read at its end, when activations of later tiles are loaded already.
constexpr int kTargetPlaces = 4;
static_assert(X_STAGES < 2 * (kTargetPlaces - 1), "no rows are overwritten that are still needed");

// Byte offsets in shared memory.
constexpr int kSmemX = 0;
constexpr int kSmemW = kSmemX + X_STAGES * kXStageBytes;
constexpr int kSmemScales = kSmemW + STAGES * kWStageBytes;
constexpr int kSmemZeros = kSmemScales + kBlockN * kScaleRowBytes;
// Mbarriers of each stage of activations: it is loaded; all warps have read it.
constexpr int kSmemFull = kSmemZeros + kBlockN * kZeroRowBytes;
constexpr int kSmemEmpty = kSmemFull + X_STAGES * 8;
constexpr int kSmemTiles = kSmemEmpty + X_STAGES * 8;
constexpr int kSmemTargets = kSmemTiles + kPlaces * 16;
static_assert(kSmemTiles % 16 == 0, "a tile is loaded 16 bytes at a time");
static_assert(kSmemTargets + kTargetPlaces * BLOCK_M * 4 == SHARED_BYTES, "the host computes the same size");

}  // namespace
