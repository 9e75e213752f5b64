// Sums of warpgroup.cu, from registers to memory.

#pragma once

#include "warpgroup_weights.cuh"
#include "warpgroup_work.cuh"

namespace {

// A warp's part of a tile as it lies in registers.
__device__ __forceinline__ void store_part(const float (&sums)[BLOCK_M / 2], float* to) {
  float4* at = (float4*)to + threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++)
    at[j * 32] = make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
}

// Programs that have parts of a tile meet, warp by warp of its rows, at a ticket, which is zero before and
// after. It counts who has come, in bits 0 to 7, and who has left, in bits 16 to 23. Each sums chunks of 16
// tokens of the tile, once all parts are in memory. Who waits in vain, because a program that it waits for
// does not run yet, leaves its chunk, as bits 8 to 15 say, to who comes last.

constexpr int kChunks = BLOCK_M / 16;
constexpr int kMostPolls = 1 << 8;  // reads of the ticket before a wait is given up

__device__ __forceinline__ u32 from_first_lane(u32 number) {
  return __shfl_sync(0xffffffff, number, 0);
}

// The chunks that a warp is to sum, as bits. It is the `mine`th of `all`; with -1 the last one sums
// everything, and puts the ticket back. The one with the highest number has none: it may have another tile to
// go on with, all others have nothing else to do. What lanes agree on is voted on, so that the compiler
// knows.
__device__ __forceinline__ u32 chunks_to_sum(int* ticket, int mine, int all) {
  const bool first_lane = threadIdx.x % 32 == 0;
  u32 own = 0;
#pragma unroll
  for (int i = 0; i < kChunks; i++)
    if (mine >= 0 && i % (all - 1) == mine) own |= 1u << i;
  u32 seen = from_first_lane(first_lane ? add_to_ticket(ticket, 1) : 0);
  if (__any_sync(0xffffffff, (int)(seen & 0xff) == all - 1)) {
    if (mine >= 0) return own | (seen >> 8 & 0xff);
    *ticket = 0;
    return (1u << kChunks) - 1;
  }
  if (own == 0) return 0;
#pragma unroll 1
  for (int i = 0; i < kMostPolls; i++)
    if (__any_sync(0xffffffff, (int)(read_ticket(ticket) & 0xff) == all)) return own;
  seen = from_first_lane(first_lane ? set_in_ticket(ticket, own << 8) : 0);
  return (int)(seen & 0xff) == all ? own : 0;
}

// Sixteen tokens of the sum of a warp's parts of a tile, in the order of the programs that made them, several
// on their way at once.
__device__ __forceinline__ void load_parts(float (&sums)[8], const Work& work, const Part& part, int first,
                                           int last, const float* from) {
  constexpr int kAtOnce = 6;  // with more, the order's programs find no registers beside this one's
  const bool every = work.every_has_some();
#pragma unroll
  for (int j = 0; j < 8; j++) sums[j] = 0.f;
#pragma unroll 1
  for (int of = first; of <= last; of += kAtOnce) {
    float4 fours[kAtOnce][2];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      int slot = 2 * (of + i);
      bool has = of + i <= last;
      // What begins in front of the tile has a part of another one first.
      if (every ? of + i == first : has) has &= work.slot(part, of + i, slot);
      const float4* at = (const float4*)(from + (u64)slot * (kBlockN * BLOCK_M)) + threadIdx.x % 32;
#pragma unroll
      for (int j = 0; j < 2; j++) fours[i][j] = has ? __ldcg(at + j * 32) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        sums[4 * j] += fours[i][j].x;
        sums[4 * j + 1] += fours[i][j].y;
        sums[4 * j + 2] += fours[i][j].z;
        sums[4 * j + 3] += fours[i][j].w;
      }
    }
  }
}

// A warp's 16 rows n of a tile. Two bytes wide, they are transposed in shared memory: in the 512 bytes that
// the warp's weights left in each of the four pieces of the stage that was read last.
template <int Tokens>
__device__ __forceinline__ void store(const float (&sums)[Tokens / 2], Out* out, const Bias* bias,
                                      const float* factor, u32 scratch, int n, int first_m, int num_rows,
                                      int num_tokens) {
  constexpr bool kShort = sizeof(Out) == 2;
  constexpr int kPieces = 4;
  const int lane = threadIdx.x % 32;
  const int upper = n + lane / 4;
  float add[2] = {0.f, 0.f};
  if (HAS_BIAS) {
    if (upper < num_rows) add[0] = Number<BIAS>::load(bias[upper]);
    if (upper + 8 < num_rows) add[1] = Number<BIAS>::load(bias[upper + 8]);
  }
#pragma unroll
  for (int j = 0; j < Tokens / 8; j++) {
    const int m = first_m + j * 8 + lane % 4 * 2;
    float up[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      up[i] = 1.f / Block<TYPE>::kFactor;
      if (TYPE == FLOAT16) up[i] *= m + i < num_tokens ? factor[m + i] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Out value = Number<OUT>::store(sums[4 * j + i] * up[i % 2] + add[i / 2]);
      const int token = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
      if (kShort)  // a piece holds 16 tokens of 16 numbers
        store2(scratch + j / 2 % kPieces * (kWBytes / 4) + ((j % 2 * 8 + token) * 16 + row) * 2, (u16)value);
      else if (first_m + j * 8 + token < num_tokens && n + row < num_rows)
        out[(u64)(first_m + j * 8 + token) * num_rows + n + row] = value;
    }
    if (kShort && (j % (2 * kPieces) == 2 * kPieces - 1 || j == Tokens / 8 - 1)) {
      __syncwarp();
#pragma unroll
      for (int piece = 0; piece <= j / 2 % kPieces; piece++) {
        // A lane takes eight numbers of a token.
        u32 words[4];
        load16(words, scratch + piece * (kWBytes / 4) + lane * 16);
        const int token = first_m + (j / 2 - j / 2 % kPieces + piece) * 16 + lane / 2,
                  first = n + lane % 2 * 8;
        if (token < num_tokens) {
          u16* to = (u16*)out + (u64)token * num_rows + first;
          if (num_rows % 8 == 0) {
            if (first < num_rows) *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
          } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
              if (first + i < num_rows) to[i] = (u16)(words[i / 2] >> (i % 2 * 16));
          }
        }
      }
      __syncwarp();
    }
  }
}

}  // namespace
