// How the programs of gemm.cu share the tiles of a product.

#pragma once

#include "smem.cuh"

namespace {

// A part of a tile, all of it if it has kSteps: what a program takes at a time. Whole tiles in turns, then
// its share of the steps of the others. (The other way round, with sums at the end of whole tiles, it takes
// up to 12% longer.)
struct Part {
  int turn, unit, tile, first, last, slot;
};

struct Work {
  int program, programs, sharing, tiles_m, turns, begin, end;
  u32 steps;  // that are shared

  __device__ __forceinline__ Work(int num_rows, int num_tokens) {
    program = blockIdx.x;
    programs = gridDim.x;
    tiles_m = max((num_tokens + BLOCK_M - 1) / BLOCK_M, 1);
    const int tiles = (num_rows + kBlockN - 1) / kBlockN * tiles_m;
    turns = tiles / programs;
    // The host sees to it that these products fit.
    const int rest = tiles - turns * programs;
    steps = (u32)rest * kSteps;
    // As few programs share them as do without a longer share: they make fewer parts.
    const u32 longest = max((steps + programs - 1) / programs, 1u);
    sharing = (int)((steps + longest - 1) / longest);
    begin = program < sharing ? (int)(steps * (u32)program / (u32)sharing) : 0;
    end = program < sharing ? (int)(steps * (u32)(program + 1) / (u32)sharing) : 0;
  }
  __device__ __forceinline__ Part start() const { return {0, begin, 0, 0, 0, 0}; }
  __device__ __forceinline__ bool next(Part& part) const {
    if (part.turn < turns) {
      part.tile = part.turn * programs + program;
      part.first = 0;
      part.last = kSteps;
    } else {
      if (part.unit >= end) return false;
      part.slot = 2 * program + (part.unit > begin);
      part.tile = turns * programs + part.unit / kSteps;
      part.first = part.unit % kSteps;
      part.last = min(kSteps, part.first + (end - part.unit));
      part.unit += part.last - part.first;
    }
    part.turn++;
    return true;
  }
  // The programs that have parts of a tile that is shared, from first to last.
  __device__ __forceinline__ void share(const Part& part, int& first, int& last) const {
    const u32 from = (u32)(part.tile - turns * programs) * kSteps;
    first = (int)(((from + 1) * (u32)sharing - 1) / steps);
    last = (int)(((from + kSteps) * (u32)sharing - 1) / steps);
  }
  // Where the part of one of them is. What begins in front of the tile has a part of another one first.
  __device__ __forceinline__ int slot(const Part& part, int of) const {
    const u32 from = (u32)(part.tile - turns * programs) * kSteps;
    return 2 * of + (steps * (u32)of / (u32)sharing < from);
  }
  __device__ __forceinline__ int first_n(const Part& part) const { return part.tile / tiles_m * kBlockN; }
  __device__ __forceinline__ int first_m(const Part& part) const { return part.tile % tiles_m * BLOCK_M; }
};

}  // namespace
