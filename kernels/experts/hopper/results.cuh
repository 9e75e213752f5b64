// The end of a tile: sums become results. A thread's sum 4 j + 2 r + c is of row r (r = 0, 1) of its two, and
// of row 8 j + 2 (lane % 4) + c of the tile.

#pragma once

#include "gates.cuh"
#include "tiles.cuh"

namespace {

constexpr float kMultiplier = kInt4 ? 1.f / Dequantizer<MMA_DTYPE>::kFactor : 1.f;

struct Results {
  u16* out;
  u32 out_rows;
  // In shared memory: the warp's 512 bytes in each quarter of a stage of weights that it has read.
  u32 scratch;
  u32 targets;  // in shared memory: the rows of the output
};

// Sums of two rows of the tile, without the factor of the weights, rounded.
__device__ __forceinline__ u32 pair(float low, float high) {
  return pack_bf16x2(low * kMultiplier, high * kMultiplier);
}
// activation(gate) * up of two rows, rounded where a product, an activation and a multiplication one after
// another round.
__device__ __forceinline__ u32 gated(u32 gates, u32 ups) {
  const float low = __uint_as_float(gates << 16), high = __uint_as_float(gates & 0xffff0000u);
  return mul_bf16x2(pack_bf16x2(activate<GATE>(low), activate<GATE>(high)), ups);
}

// Stores gated features as the next product loads them: [N / 64][out_rows][64], the 16-byte piece p of row r
// at p ^ (r % 8). The features of a warp are piece warp % 8 of a slice.
template <int Rows>
__device__ __forceinline__ void store_gated(const float (&sums)[Rows / 2], const Results& results,
                                            const Tile& tile, int warp) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < Rows / 8; j++) {
    const u32 two = gated(pair(sums[4 * j], sums[4 * j + 1]), pair(sums[4 * j + 2], sums[4 * j + 3]));
    const u32 at =
        results.scratch + j / 4 * (kWStageBytes / 4) + (j % 4 * 8 + lane % 4 * 2) * 16 + lane / 4 * 2;
    st_shared_u16(at, (u16)two);
    st_shared_u16(at + 16, (u16)(two >> 16));
  }
  __syncwarp();
  u16* const slice = results.out + (u64)(tile.tile_n * 2 + warp / 8) * results.out_rows * 64;
#pragma unroll
  for (int i = 0; i < (Rows + 31) / 32; i++) {
    const int local = i * 32 + lane;
    if (local >= tile.rows) continue;
    u32 words[4];
    ld_shared_v4(words, results.scratch + i * (kWStageBytes / 4) + lane * 16);
    const u32 row = tile.first + local;
    *(uint4*)(slice + (u64)row * 64 + (warp % 8 ^ row % 8) * 8) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
  __syncwarp();
}

// Stores features [rows, N] of the rows that `targets` lists. Results are transposed in shared memory, 16
// rows in each of four pieces at a time, and a lane stores eight numbers of a row.
template <int Rows>
__device__ __forceinline__ void store_plain(const float (&sums)[Rows / 2], const Results& results,
                                            const Tile& tile, int warp) {
  constexpr int kPieces = 4;
  const int lane = threadIdx.x % 32, first = tile.tile_n * kFeatures + warp * 16 + lane % 2 * 8;
#pragma unroll
  for (int j = 0; j < Rows / 8; j++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const u32 two = pair(sums[4 * j + 2 * i], sums[4 * j + 2 * i + 1]);
      const u32 at = results.scratch + j / 2 % kPieces * (kWStageBytes / 4) +
                     ((j % 2 * 8 + lane % 4 * 2) * 16 + lane / 4 + i * 8) * 2;
      st_shared_u16(at, (u16)two);
      st_shared_u16(at + 32, (u16)(two >> 16));
    }
    if (j % (2 * kPieces) == 2 * kPieces - 1 || j == Rows / 8 - 1) {
      __syncwarp();
#pragma unroll
      for (int piece = 0; piece <= j / 2 % kPieces; piece++) {
        const int local = (j / 2 - j / 2 % kPieces + piece) * 16 + lane / 2;
        if (local >= tile.rows) continue;
        u32 words[4];
        ld_shared_v4(words, results.scratch + piece * (kWStageBytes / 4) + lane * 16);
        const u32 target = ld_shared_u32(results.targets + local * 4);
        *(uint4*)(results.out + (u64)target * N + first) = make_uint4(words[0], words[1], words[2], words[3]);
      }
      __syncwarp();
    }
  }
}

}  // namespace
