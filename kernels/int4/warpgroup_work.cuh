// How the programs of warpgroup.cu share the tiles of a product.

#pragma once

#include "warpgroup_layout.cuh"

namespace {

// A part of a tile, all of it if it has kSteps: what a program takes at a time. Whole tiles in turns, then
// its share of the steps of the others.
struct Part {
  int turn, unit, tile, first, last, slot;
};

struct Work {
  int program, programs, tiles_m, turns, begin, end;
  u32 steps;  // that are shared

  __device__ __forceinline__ Work(int num_rows, int num_tokens) {
    program = blockIdx.x;
    programs = gridDim.x;
    tiles_m = max((num_tokens + BLOCK_M - 1) / BLOCK_M, 1);
    const int tiles = (num_rows + kBlockN - 1) / kBlockN * tiles_m;
    turns = tiles / programs;
    // The host sees to it that these products fit.
    steps = (u32)(tiles - turns * programs) * kSteps;
    begin = (int)(steps * (u32)program / (u32)programs);
    end = (int)(steps * (u32)(program + 1) / (u32)programs);
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
  // The programs that have parts of a tile that is shared, and how many of them there are: with more programs
  // than steps some have none.
  __device__ __forceinline__ int share(const Part& part, int& first, int& last) const {
    const u32 from = (u32)(part.tile - turns * programs) * kSteps;
    first = (int)(((from + 1) * (u32)programs - 1) / steps);
    last = (int)(((from + kSteps) * (u32)programs - 1) / steps);
    return steps < (u32)programs ? kSteps : last - first + 1;
  }
  __device__ __forceinline__ bool every_has_some() const { return steps >= (u32)programs; }
  // Where the part of a program is.
  __device__ __forceinline__ bool slot(const Part& part, int of, int& slot) const {
    const u32 from = (u32)(part.tile - turns * programs) * kSteps;
    const u32 begins = steps * (u32)of / (u32)programs;
    slot = 2 * of + (begins < from);
    return begins < steps * (u32)(of + 1) / (u32)programs;
  }
  __device__ __forceinline__ int first_n(const Part& part) const { return part.tile / tiles_m * kBlockN; }
  __device__ __forceinline__ int first_m(const Part& part) const { return part.tile % tiles_m * BLOCK_M; }
};

}  // namespace
