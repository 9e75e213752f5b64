// What gemm.cu brings to shared memory: activations, weights and their scales.

#pragma once

#include "tile_scheduler.cuh"

namespace {

// A stage of a ring, and the parity of its use.
template <int Stages>
struct Turn {
  u32 stage, parity;

  __device__ __forceinline__ void go_on() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// One thread brings activations, which lie as [K / 64][rows][64], swizzled as in shared memory.
__device__ __forceinline__ void produce(const Work& work, u32 base, const u8* x, int rows_of_x) {
  wait_for_previous();
  const u64 slice = (u64)rows_of_x * 128;
  Part part = work.start();
  Turn<X_STAGES> turn{0, 1};  // the first use of a stage need not wait
  int free_stages = X_STAGES;
  while (work.next(part)) {
    const u8* from = x + part.first * 4 * slice + (u64)work.first_m(part) * 128;
    for (int i = part.first * 2; i < part.last * 2; i++) {
      const u32 full = base + kFullAt + 8 * turn.stage, to = base + kXAt + turn.stage * kXBytes;
      barrier_wait(base + kEmptyAt + 8 * turn.stage, turn.parity);
      if (free_stages-- == 0) barrier_arrive(base + kStartedAt);
      barrier_expect(full, kXBytes);
      copy_bulk(to, from, kXBytes / 2, full);
      copy_bulk(to + kXBytes / 2, from + slice, kXBytes / 2, full);
      from += 2 * slice;
      turn.go_on();
    }
  }
  if (free_stages >= 0) barrier_arrive(base + kStartedAt);
}

// Copies a thread's weights, and a lane's share of its warp's scales, to shared memory, ahead of their use.
// No other thread reads the weights, and no other warp the scales. Every instruction counts here: one takes
// as long as the tensor cores stand still for it. So places are counted in 32 bits from where a tensor
// begins.
struct Ahead {
  u32 upper, lower;              // rows r and r + 8 of a warp's 16
  u32 upper_scale, lower_scale;  // of the rows whose scales the lane copies
  u32 step, last;
  int scale_stage;
  Part part;

  __device__ __forceinline__ explicit Ahead(const Work& work)
      : step(0), last(0), scale_stage(0), part(work.start()) {}

  __device__ __forceinline__ bool next(const Work& work, int warp, int num_rows) {
    if (step < last) return true;
    if (!work.next(part)) return false;
    const int lane = threadIdx.x % 32;
    // Rows beyond the last repeat it: what they give is not stored.
    const u32 row = min(work.first_n(part) + warp * 16 + lane / 4, num_rows - 1);
    const u32 other = min(work.first_n(part) + warp * 16 + 8 + lane / 4, num_rows - 1);
    upper = row * (K / 2) + part.first * 128 + lane % 4 * 16;
    lower = other * (K / 2) + part.first * 128 + lane % 4 * 16;
    upper_scale = row * (K / 16);
    lower_scale = other * (K / 16);
    step = part.first;
    last = part.last;
    return true;
  }

  __device__ __forceinline__ void copy(const u8* qdata, const u8* scale, const u8* zero, u32 to, u32 s_to,
                                       u32 z_to) {
    copy16(to, qdata + upper);
    copy16(to + kWBytes / 4, qdata + upper + 64);
    copy16(to + kWBytes / 2, qdata + lower);
    copy16(to + kWBytes / 4 * 3, qdata + lower + 64);
    upper += 128;
    lower += 128;
    // Warpgroups take turns.
    const u32 in_unit = (step + threadIdx.x / 128) % kUnit;
    if (in_unit == 0 || step == (u32)part.first) {
      const u32 further = threadIdx.x % kUnit - in_unit;
      if (further < kUnit && step + further < last) {
        u32 stage = scale_stage + further;
        if (stage >= kScaleStages) stage -= kScaleStages;
        const u32 from = (step + further) * 16;
        copy16(s_to + stage * 16, scale + (upper_scale + from));
        copy16(s_to + stage * 16 + 8 * kSRow, scale + (lower_scale + from));
        if (OFFSET == ZERO_POINT) {
          copy8(z_to + stage * 8, zero + (upper_scale + from) / 2);
          copy8(z_to + stage * 8 + 8 * kZRow, zero + (lower_scale + from) / 2);
        } else if (OFFSET == MINIMUM) {
          copy16(z_to + stage * 16, zero + (upper_scale + from));
          copy16(z_to + stage * 16 + 8 * kZRow, zero + (lower_scale + from));
        }
      }
    }
    if (++scale_stage == kScaleStages) scale_stage = 0;
    step++;
  }
};

}  // namespace
