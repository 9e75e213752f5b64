// Loads of activations from global memory to shared memory.

#pragma once

#include "tiles.cuh"

namespace {

// A position in the ring of activations, and the parity of the mbarrier phase there.
struct XState {
  u32 stage, phase;

  __device__ __forceinline__ u32 previous() const { return stage == 0 ? X_STAGES - 1 : stage - 1; }
  __device__ __forceinline__ void advance() {
    if (++stage == X_STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// kLoadWarps warps load the activations of all warps, each every kLoadWarps-th four rows of a tile. They lie
// as [K / 64][x_rows][64], the 16-byte piece p of row r at p ^ (r % 8). With a gate a row is that of a token,
// found through `order`; otherwise rows are sorted. In shared memory row i of a tile has its piece p at
// p ^ (i % 8).
//
// The first of these warps also reads the list of tiles for all others. A tile that is stored, and the rows
// of its output, are visible to a warp that has waited for activations which were loaded behind.
__device__ __forceinline__ void load_activations(u32 smem, int load_warp, const u8* x, const int* order,
                                                 const int* tiles, u32 x_rows) {
  constexpr int kRows = kLoadWarps * 4, kLoads = BLOCK_M / kRows;  // of a lane and 64 columns
  static_assert(BLOCK_M % kRows == 0 && kRows % 8 == 0, "a lane always has the same row of eight");
  const u32 lane = threadIdx.x % 32, piece = lane % 8;
  const int local = load_warp * 4 + lane / 8;
  const u32 to_row = local * 128 + (piece ^ local % 8) * 16;
  const u32 slice_bytes = x_rows * 128;  // of 64 columns
  XState state{0, 1};                    // the first use of a stage need not wait
  int i = 0;
#pragma unroll 1
  for (;; i++) {
    const Tile tile = load_tile(smem, i);
    if (tile.expert < 0) break;
    u32 from[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; j++) {
      // Rows behind the last one repeat it: what they give is not stored.
      const int row = tile.first + max(min(j * kRows + local, tile.rows - 1), 0);
      const u32 source = GATE ? (tile.rows > 0 ? order[row] / TOP_K : 0) : row;
      from[j] = source * 128 + (piece ^ source % 8) * 16;
    }
    const int target = load_warp * 32 + lane;
    if (!GATE && target < tile.rows)
      st_shared_u32(smem + kSmemTargets + (i % kTargetPlaces * BLOCK_M + target) * 4,
                    order[tile.first + target]);
    if (target == 0) store_tile(smem, i + kAhead, find_tile(tiles, i + kAhead));
    const u8* slice = x;
#pragma unroll 1
    for (int step = 0; step < kXSteps; step++) {
      const u32 to = smem + kSmemX + state.stage * kXStageBytes + to_row;
      mbarrier_wait(smem + kSmemEmpty + 8 * state.stage, state.phase);
#pragma unroll
      for (int j = 0; j < kLoads; j++) {
        if (j * kRows >= tile.rows) break;
        cp_async16(to + j * kRows * 128, slice + from[j]);
        cp_async16(to + kXStageBytes / 2 + j * kRows * 128, slice + slice_bytes + from[j]);
      }
      cp_async_commit();
      slice += (u64)slice_bytes * 2;
      if (i + step > 0) {
        cp_async_wait<1>();
        fence_proxy_async();
        mbarrier_arrive(smem + kSmemFull + 8 * state.previous());
      }
      state.advance();
    }
  }
  if (i > 0) {
    cp_async_wait<0>();
    fence_proxy_async();
    mbarrier_arrive(smem + kSmemFull + 8 * state.previous());
  }
}

}  // namespace
