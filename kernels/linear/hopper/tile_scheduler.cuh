// Stream-K: which tiles a CTA multiplies, and which steps of K of each.
//
//   const TileScheduler scheduler(out_features, num_tokens);
//   WorkTileInfo work = scheduler.initial_work();
//   while (scheduler.next_work(work)) { ... }
//
// A tile is kBlockN rows of the weight by BLOCK_M tokens, and takes kSteps steps. The CTAs take whole tiles
// in waves, one each, as long as there are enough for all of them. The steps of the tiles that remain are
// divided evenly: each of the first stream_k_ctas CTAs takes one range of consecutive steps, after its whole
// tiles. (The other way round, with the fixup at the end of the whole tiles, the kernel takes up to 12%
// longer.) A range is at most kSteps long, so it lies in two tiles at most. Where two or more CTAs have steps
// of a tile, each stores a partial, and fixup.cuh adds them up.

#pragma once

#include "smem.cuh"

namespace {

// The steps [k_begin, k_end) of a tile, and what the scheduler needs to find the next ones.
struct WorkTileInfo {
  int wave, next_step;  // next_step is the first of the CTA's range that it has not taken
  int tile, k_begin, k_end;
  int slot;  // of its partial, if the tile is shared

  __device__ __forceinline__ bool is_whole() const { return k_end - k_begin == kSteps; }
  __device__ __forceinline__ bool is_shared() const { return k_end - k_begin < kSteps; }
};

struct TileScheduler {
  int cta, num_ctas, stream_k_ctas, tiles_m, waves, range_begin, range_end;
  u32 stream_k_steps;  // of all shared tiles

  __device__ __forceinline__ TileScheduler(int out_features, int num_tokens) {
    cta = blockIdx.x;
    num_ctas = gridDim.x;
    tiles_m = max((num_tokens + BLOCK_M - 1) / BLOCK_M, 1);
    const int tiles = (out_features + kBlockN - 1) / kBlockN * tiles_m;
    waves = tiles / num_ctas;
    // The host refuses problems for which these products overflow.
    const int rest = tiles - waves * num_ctas;
    stream_k_steps = (u32)rest * kSteps;
    // The fewest CTAs with which the longest range stays as short: fewer of them store fewer partials.
    const u32 longest = max((stream_k_steps + num_ctas - 1) / num_ctas, 1u);
    stream_k_ctas = (int)((stream_k_steps + longest - 1) / longest);
    range_begin = cta < stream_k_ctas ? (int)first_step_of(cta) : 0;
    range_end = cta < stream_k_ctas ? (int)first_step_of(cta + 1) : 0;
  }
  __device__ __forceinline__ WorkTileInfo initial_work() const { return {0, range_begin, 0, 0, 0, 0}; }
  // The same after all whole tiles.
  __device__ __forceinline__ WorkTileInfo initial_stream_k_work() const {
    return {waves, range_begin, 0, 0, 0, 0};
  }
  // False if there are no more.
  __device__ __forceinline__ bool next_work(WorkTileInfo& work) const {
    if (work.wave < waves) {
      work.tile = work.wave * num_ctas + cta;
      work.k_begin = 0;
      work.k_end = kSteps;
    } else {
      if (work.next_step >= range_end) return false;
      work.slot = 2 * cta + (work.next_step > range_begin);
      work.tile = waves * num_ctas + work.next_step / kSteps;
      work.k_begin = work.next_step % kSteps;
      work.k_end = min(kSteps, work.k_begin + (range_end - work.next_step));
      work.next_step += work.k_end - work.k_begin;
    }
    work.wave++;
    return true;
  }
  __device__ __forceinline__ bool has_next_work(const WorkTileInfo& work) const {
    return work.next_step < range_end;
  }
  // Of a tile that is shared: which one it is of them.
  __device__ __forceinline__ int shared_index(const WorkTileInfo& work) const {
    return work.tile - waves * num_ctas;
  }
  // The CTAs that have steps of a shared tile: all from first to last.
  __device__ __forceinline__ void peers(const WorkTileInfo& work, int& first, int& last) const {
    const u32 tile_begin = (u32)shared_index(work) * kSteps;
    first = (int)(((tile_begin + 1) * (u32)stream_k_ctas - 1) / stream_k_steps);
    last = (int)(((tile_begin + kSteps) * (u32)stream_k_ctas - 1) / stream_k_steps);
  }
  // The slot of a peer's partial of a shared tile. A peer whose range begins in the tile before has stored a
  // partial of that one in its first slot.
  __device__ __forceinline__ int slot_of(const WorkTileInfo& work, int peer) const {
    const u32 tile_begin = (u32)shared_index(work) * kSteps;
    return 2 * peer + (first_step_of(peer) < tile_begin);
  }
  __device__ __forceinline__ int first_n(const WorkTileInfo& work) const {
    return work.tile / tiles_m * kBlockN;
  }
  __device__ __forceinline__ int first_m(const WorkTileInfo& work) const {
    return work.tile % tiles_m * BLOCK_M;
  }

 private:
  __device__ __forceinline__ u32 first_step_of(int peer) const {
    return stream_k_steps * (u32)peer / (u32)stream_k_ctas;
  }
};

}  // namespace
