// Loads from global memory to shared memory: activations, weights and their scales.

#pragma once

#include "tile_scheduler.cuh"

namespace {

// A position in a ring of stages, and the parity of the mbarrier phase there.
template <int Stages>
struct PipelineState {
  u32 index, phase;

  __device__ __forceinline__ void advance() {
    if (++index == Stages) {
      index = 0;
      phase ^= 1;
    }
  }
};

// One thread loads the activations of all warps, which lie as [K / 64][x_rows][64] in memory, swizzled as in
// shared memory. It arrives at kSmemStarted as soon as the warps have read the first stage, or, with fewer
// loads than stages, after the last load: the warp that plans the fixup waits for that, so that its stores do
// not delay the first loads.
__device__ __forceinline__ void produce_activations(const TileScheduler& scheduler, u32 smem, const u8* x,
                                                    int x_rows) {
  wait_for_previous_grid();
  const u64 slice_bytes = (u64)x_rows * 128;  // of 64 columns
  WorkTileInfo work = scheduler.initial_work();
  PipelineState<X_STAGES> state{0, 1};  // the first use of a stage need not wait
  int free_stages = X_STAGES;
  while (scheduler.next_work(work)) {
    const u8* from = x + work.k_begin * 4 * slice_bytes + (u64)scheduler.first_m(work) * 128;
    for (int i = work.k_begin * 2; i < work.k_end * 2; i++) {
      const u32 full = smem + kSmemFull + 8 * state.index, to = smem + kSmemX + state.index * kXStageBytes;
      mbarrier_wait(smem + kSmemEmpty + 8 * state.index, state.phase);
      if (free_stages-- == 0) mbarrier_arrive(smem + kSmemStarted);
      mbarrier_arrive_expect_tx(full, kXStageBytes);
      cp_async_bulk(to, from, kXStageBytes / 2, full);
      cp_async_bulk(to + kXStageBytes / 2, from + slice_bytes, kXStageBytes / 2, full);
      from += 2 * slice_bytes;
      state.advance();
    }
  }
  if (free_stages >= 0) mbarrier_arrive(smem + kSmemStarted);
}

// A thread's copies of weights and scales to shared memory, several steps in front of the step that is
// multiplied. A thread copies the weights that it multiplies itself, and the lanes of a warp share the copies
// of the warp's scales, so no barrier is needed for them. Every instruction counts here: the tensor cores
// stand still for as long as it takes. So offsets are 32 bits wide, from the begin of a tensor.
struct WeightPrefetcher {
  u32 upper, lower;              // offsets in qdata, of rows r and r + 8 of the warp's 16
  u32 upper_scale, lower_scale;  // offsets in scale, of the two rows whose scales the lane copies
  u32 step, end;
  int scale_stage;
  WorkTileInfo work;

  __device__ __forceinline__ explicit WeightPrefetcher(const TileScheduler& scheduler)
      : step(0), end(0), scale_stage(0), work(scheduler.initial_work()) {}

  // Moves on to the next tile if the steps of this one are copied; false if there is none.
  __device__ __forceinline__ bool next(const TileScheduler& scheduler, int warp, int out_features) {
    if (step < end) return true;
    if (!scheduler.next_work(work)) return false;
    const int lane = threadIdx.x % 32;
    // Rows beyond the last one are copies of it; their results are not stored.
    const u32 row = min(scheduler.first_n(work) + warp * 16 + lane / 4, out_features - 1);
    const u32 other = min(scheduler.first_n(work) + warp * 16 + 8 + lane / 4, out_features - 1);
    upper = row * (K / 2) + work.k_begin * 128 + lane % 4 * 16;
    lower = other * (K / 2) + work.k_begin * 128 + lane % 4 * 16;
    upper_scale = row * (K / 16);
    lower_scale = other * (K / 16);
    step = work.k_begin;
    end = work.k_end;
    return true;
  }

  // Copies the next step. w_to, scale_to and zero_to are addresses in shared memory: of the thread's weights
  // in the stage, and of the lane's row of scales and of zeros.
  __device__ __forceinline__ void copy(const u8* qdata, const u8* scale, const u8* zero, u32 w_to,
                                       u32 scale_to, u32 zero_to) {
    cp_async16(w_to, qdata + upper);
    cp_async16(w_to + kWStageBytes / 4, qdata + upper + 64);
    cp_async16(w_to + kWStageBytes / 2, qdata + lower);
    cp_async16(w_to + kWStageBytes / 4 * 3, qdata + lower + 64);
    upper += 128;
    lower += 128;
    // The warpgroups copy scales in different steps.
    const u32 position = (step + threadIdx.x / 128) % kScaleSteps;
    if (position == 0 || step == (u32)work.k_begin) {
      const u32 further = threadIdx.x % kScaleSteps - position;
      if (further < kScaleSteps && step + further < end) {
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
    step++;
  }
};

}  // namespace
