// Which tiles a CTA multiplies, from the list that place_kernel makes on the device.
//
// A record of the list, {expert, its first row, their end, its first record}, stands for at most BLOCK_M rows
// of an expert, and for kTilesN tiles. The rows of an expert are divided evenly among its records, in eights:
// so the instruction that multiplies them can be as narrow as possible. CTAs take tiles in turn. Those that
// read the same weights follow each other.

#pragma once

#include "layout.cuh"

namespace {

// Rows [first, first + rows) of an expert, and features from tile_n * kFeatures on; none if expert < 0.
struct Tile {
  int expert, first, rows, tile_n;
};

// Tile i of this CTA, from the list.
__device__ __forceinline__ Tile find_tile(const int* tiles, int i) {
  const int index = blockIdx.x + i * gridDim.x;
  if (index >= tiles[0] * kTilesN) return {-1, 0, 0, 0};
  const int4 record = ((const int4*)tiles)[1 + index / kTilesN];
  const int all = record.z - record.y, parts = (all + BLOCK_M - 1) / BLOCK_M;
  const int each = ((all + parts - 1) / parts + 7) / 8 * 8, local = index - record.w * kTilesN;
  const int begin = local % parts * each;
  // Where parts are many, eights may be enough without the last ones, which have no rows then.
  return {record.x, record.y + min(begin, all), max(min(each, all - begin), 0), local / parts};
}

// Tiles in shared memory, tile i of a CTA in place i % kPlaces.
__device__ __forceinline__ void store_tile(u32 smem, int i, const Tile& tile) {
  const u32 at = smem + kSmemTiles + i % kPlaces * 16;
  st_shared_u32(at, tile.expert), st_shared_u32(at + 4, tile.first);
  st_shared_u32(at + 8, tile.rows), st_shared_u32(at + 12, tile.tile_n);
}
__device__ __forceinline__ Tile load_tile(u32 smem, int i) {
  u32 words[4];
  ld_shared_v4(words, smem + kSmemTiles + i % kPlaces * 16);
  return {(int)words[0], (int)words[1], (int)words[2], (int)words[3]};
}

}  // namespace
