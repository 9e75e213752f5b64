// Loads of weights and their scales from global memory to shared memory.

#pragma once

#include "tiles.cuh"

namespace {

// The rows of the weight, of those of one expert, that a lane has as rows r and r + 8 of a warp's 16, where
// r is `eighth`. With a gate these are the gate and the other half of one feature. A warp's eight features
// are those that lie in one piece of 16 bytes of the activations of the next product, so that the warp stores
// whole pieces.
__device__ __forceinline__ int feature_of(int warp, int eighth) {
  if (!GATE) return warp * 16 + eighth;
  return eighth / 2 * 32 + warp / 8 * 16 + warp % 8 / 2 * 4 + warp % 2 + eighth % 2 * 2;
}
constexpr int kLowerRow = GATE ? N : 8;  // from row r to row r + 8

// As WeightPrefetcher in kernels/linear/hopper/producer.cuh: a thread's copies of the weights that it
// multiplies itself, and the warp's copies of its scales, STAGES - 1 steps in front of the step that is
// multiplied. Offsets are 32 bits wide, from the begin of a tensor.
struct WeightPrefetcher {
  u32 upper, lower;              // offsets in qdata, of rows r and r + 8 of the warp's 16
  u32 upper_scale, lower_scale;  // offsets in scale, of these rows
  u32 step;
  int scale_stage, tile;

  __device__ __forceinline__ WeightPrefetcher() : step(kSteps), scale_stage(0), tile(0) {}

  // Moves on to the next tile if the steps of this one are copied; false if there is none.
  __device__ __forceinline__ bool next(u32 smem, int warp) {
    if (step < kSteps) return true;
    const Tile found = load_tile(smem, tile);
    if (found.expert < 0) return false;
    tile++;
    const u32 lane = threadIdx.x % 32;
    const u32 row =
        (u32)found.expert * (GATE ? 2 * N : N) + found.tile_n * kFeatures + feature_of(warp, lane / 4);
    // A lane has a block of 32 columns of each 128: of int4 16 bytes, of bfloat16 64, half of them in a step.
    upper = row * kRowBytes + lane % 4 * (kInt4 ? 16 : 64);
    lower = upper + kLowerRow * kRowBytes;
    upper_scale = row * (K / 16);
    lower_scale = upper_scale + kLowerRow * (K / 16);
    step = 0;
    return true;
  }

  // Copies the next step. w_to, scale_to and zero_to are addresses in shared memory: of the thread's weights
  // in the stage, and of the lane's row of scales and of zeros.
  __device__ __forceinline__ void copy(const u8* qdata, const u8* scale, const u8* zero, u32 w_to,
                                       u32 scale_to, u32 zero_to) {
    constexpr int kSecond = kInt4 ? 64 : 16;
    cp_async16(w_to, qdata + upper);
    cp_async16(w_to + kWStageBytes / 4, qdata + upper + kSecond);
    cp_async16(w_to + kWStageBytes / 2, qdata + lower);
    cp_async16(w_to + kWStageBytes / 4 * 3, qdata + lower + kSecond);
    const u32 further = kInt4 ? 128 : step % 2 == 0 ? 32 : 256 - 32;
    upper += further;
    lower += further;
    if (kInt4) copy_scales(scale, zero, scale_to, zero_to);
    step++;
  }

 private:
  __device__ __forceinline__ void copy_scales(const u8* scale, const u8* zero, u32 scale_to, u32 zero_to) {
    // The warpgroups copy scales in different steps.
    const u32 position = (step + threadIdx.x / 128) % kScaleSteps;
    if (position == 0 || step == 0) {
      const u32 further = threadIdx.x % kScaleSteps - position;
      if (further < kScaleSteps && step + further < kSteps) {
        u32 stage = scale_stage + further;
        if (stage >= kScaleStages) stage -= kScaleStages;
        const u32 from = (step + further) * 16;
        cp_async16(scale_to + stage * 16, scale + (upper_scale + from));
        cp_async16(scale_to + stage * 16 + 8 * kScaleRowBytes, scale + (lower_scale + from));
        if (OFFSET == ZERO_POINT) {
          cp_async8(zero_to + stage * 8, zero + (upper_scale + from) / 2);
          cp_async8(zero_to + stage * 8 + 8 * kZeroRowBytes, zero + (lower_scale + from) / 2);
        } else if (OFFSET == MINIMUM) {
          cp_async16(zero_to + stage * 16, zero + (upper_scale + from));
          cp_async16(zero_to + stage * 16 + 8 * kZeroRowBytes, zero + (lower_scale + from));
        }
      }
    }
    if (++scale_stage == kScaleStages) scale_stage = 0;
  }
};

}  // namespace
