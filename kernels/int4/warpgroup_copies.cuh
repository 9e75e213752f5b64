// What warpgroup.cu brings to shared memory: activations, weights and their scales.

#pragma once

#include "warpgroup_work.cuh"

namespace {

// One thread brings activations, which lie as [K / 64][rows][64], swizzled as in shared memory.
__device__ __forceinline__ void produce(const Work& work, u32 base, const u8* x, int rows_of_x) {
  wait_for_previous();
  const u64 slice = (u64)rows_of_x * 128;
  Part part = work.start();
  int stage = 0;
  u32 parity = 1;  // the first use of a stage need not wait
  while (work.next(part)) {
    const u8* from = x + part.first * 4 * slice + (u64)work.first_m(part) * 128;
    for (int i = part.first * 2; i < part.last * 2; i++) {
      const u32 full = base + kFullAt + 8 * stage, to = base + kXAt + stage * kXBytes;
      barrier_wait(base + kEmptyAt + 8 * stage, parity);
      barrier_expect(full, kXBytes);
      copy_bulk(to, from, kXBytes / 2, full);
      copy_bulk(to + kXBytes / 2, from + slice, kXBytes / 2, full);
      from += 2 * slice;
      if (++stage == X_STAGES) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

// Copies a thread's weights, and a lane's share of its warp's scales, to shared memory, ahead of their use.
// No other thread reads the weights, and no other warp the scales.
struct Ahead {
  const u8 *upper, *lower;  // rows r and r + 8 of a warp's 16
  const u8 *scale, *zero;
  int step, scale_stage, first_row, last_row;
  Part part;

  __device__ __forceinline__ Ahead(const Work& work, const u8* scale, const u8* zero, int num_rows)
      : scale(scale), zero(zero), step(0), scale_stage(0), last_row(num_rows - 1), part(work.start()) {}

  __device__ __forceinline__ bool next(const Work& work, const u8* qdata, int warp) {
    if (step < part.last) return true;
    if (!work.next(part)) return false;
    const int lane = threadIdx.x % 32;
    first_row = work.first_n(part) + warp * 16;
    const u8* q = qdata + part.first * 128 + lane % 4 * 16;
    // Rows beyond the last repeat it: what they give is not stored.
    upper = q + (u64)min(first_row + lane / 4, last_row) * (K / 2);
    lower = q + (u64)min(first_row + 8 + lane / 4, last_row) * (K / 2);
    step = part.first;
    return true;
  }

  __device__ __forceinline__ void copy(u32 to, u32 s_to, u32 z_to) {
    copy16(to, upper);
    copy16(to + kWBytes / 4, upper + 64);
    copy16(to + kWBytes / 2, lower);
    copy16(to + kWBytes / 4 * 3, lower + 64);
    upper += 128;
    lower += 128;
    if (step % kUnit == 0 || step == part.first) {
      const int further = (int)(threadIdx.x % kUnit) - step % kUnit;
      const bool mine = further >= 0 && step + further < part.last;
      int stage = scale_stage + further;
      if (stage >= kScaleStages) stage -= kScaleStages;
      if (mine) {
        constexpr int kRows = 32 / kUnit;  // of which a warp copies at once, a step of each per lane
#pragma unroll
        for (int i = 0; i < 16; i += kRows) {
          const u64 row = min(first_row + i + (int)(threadIdx.x % 32) / kUnit, last_row);
          copy16(s_to + stage * kSBytes + i * 16, scale + row * (K / 16) + (step + further) * 16);
          const u8* from = zero + (row * kSteps + step + further) * kZero;
          if (OFFSET == ZERO_POINT) copy8(z_to + stage * kZBytes + i * 8, from);
          if (OFFSET == MINIMUM) copy16(z_to + stage * kZBytes + i * 16, from);
        }
      }
    }
    if (++scale_stage == kScaleStages) scale_stage = 0;
    step++;
  }
};

}  // namespace
