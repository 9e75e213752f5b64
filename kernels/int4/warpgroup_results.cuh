// Sums of warpgroup.cu, from registers to memory.

#pragma once

#include "warpgroup_weights.cuh"
#include "warpgroup_work.cuh"

namespace {

// Parts of a tile are in memory as they lie in registers, eight numbers of a lane for sixteen tokens at a
// time: as bfloat16 where activations may be rounded, which takes half the time.
constexpr bool kNarrow = TYPE == BFLOAT16 || HALF_SUMS;
constexpr int kPartBytes = BLOCK_M * (kNarrow ? 32 : 64);  // of a warp

struct Eight {
  uint4 words[kNarrow ? 1 : 2];

  __device__ __forceinline__ void add_to(float (&sums)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint4& four = words[kNarrow ? 0 : i / 4];
      const int place = kNarrow ? i / 2 : i % 4;
      const u32 word = place == 0 ? four.x : place == 1 ? four.y : place == 2 ? four.z : four.w;
      sums[i] += __uint_as_float(!kNarrow ? word : i % 2 ? word & 0xffff0000u : word << 16);
    }
  }
};

// The sums of a thread.
__device__ __forceinline__ void as_floats(const float (&sums)[BLOCK_M / 2], const RowFactors&, const float*,
                                          int, int, float (&to)[BLOCK_M / 2]) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j++) to[j] = sums[j];
}
__device__ __forceinline__ void as_floats(const u32 (&sums)[BLOCK_M / 4], const RowFactors& factors,
                                          const float* factor, int first_m, int num_tokens,
                                          float (&to)[BLOCK_M / 2]) {
  const float back[2] = {factors.back<0>(), factors.back<1>()};
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const int m = first_m + j * 8 + threadIdx.x % 4 * 2;
    const float low = m < num_tokens ? factor[m] : 0.f, high = m + 1 < num_tokens ? factor[m + 1] : 0.f;
#pragma unroll
    for (int row = 0; row < 2; row++) {
      to[4 * j + 2 * row] = one_of<0>(sums[2 * j + row]) * back[row] * low;
      to[4 * j + 2 * row + 1] = one_of<1>(sums[2 * j + row]) * back[row] * high;
    }
  }
}

// Sums of the steps in front, where a part has more than kRun, lie behind the parts, which take half of
// `partial`.
__device__ __forceinline__ float4* aside(u8* partial, const Work& work, int warp) {
  static_assert(!HALF_SUMS || kNarrow, "parts leave half of the memory");
  u8* behind = partial + (u64)(2 * work.programs) * (kWarps * kPartBytes);
  return (float4*)behind + (u64)(work.program * kWarps + warp) * (BLOCK_M * 4) + threadIdx.x % 32;
}
__device__ __forceinline__ void put_aside(const float (&sums)[BLOCK_M / 2], float4* to) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++)
    to[j * 32] = make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
}
__device__ __forceinline__ void add_aside(float (&sums)[BLOCK_M / 2], const float4* from) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const float4 four = from[j * 32];
    sums[4 * j] += four.x;
    sums[4 * j + 1] += four.y;
    sums[4 * j + 2] += four.z;
    sums[4 * j + 3] += four.w;
  }
}

__device__ __forceinline__ void store_part(const float (&sums)[BLOCK_M / 2], u8* to) {
  uint4* at = (uint4*)to + threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j += kNarrow ? 8 : 4) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      words[i] = kNarrow ? wide_pair(sums[j + 2 * i], sums[j + 2 * i + 1]) : __float_as_uint(sums[j + i]);
    *at = make_uint4(words[0], words[1], words[2], words[3]);
    at += 32;
  }
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
  __syncwarp();
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

// Where the parts are that programs from `of` to `last` have of a tile, one for each lane; -1 for none.
__device__ __forceinline__ int slots_from(const Work& work, const Part& part, int of, int last) {
  of += threadIdx.x % 32;
  return of <= last ? work.slot(part, of) : -1;
}

// Sixteen tokens of the sum of a warp's parts of a tile, in the order of the programs that made them, several
// on their way at once.
__device__ __forceinline__ void load_parts(float (&sums)[8], const Work& work, const Part& part, int first,
                                           int last, int slots, const u8* from) {
  constexpr int kAtOnce =
      kNarrow ? 8 : 4;  // with more, the order's programs find no registers beside this one's
  static_assert(32 % kAtOnce == 0, "lanes have the places of as many parts as come together");
#pragma unroll
  for (int j = 0; j < 8; j++) sums[j] = 0.f;
#pragma unroll 1
  for (int i = 0; i <= last - first; i += kAtOnce) {
    if (i > 0 && i % 32 == 0) slots = slots_from(work, part, first + i, last);
    Eight eights[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; j++) {
      const int slot = __shfl_sync(0xffffffff, slots, i % 32 + j);
      const uint4* at = (const uint4*)(from + (u64)slot * (kWarps * kPartBytes)) + threadIdx.x % 32;
#pragma unroll
      for (int k = 0; k < (kNarrow ? 1 : 2); k++)
        eights[j].words[k] = slot >= 0 ? __ldcg(at + k * 32) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; j++) eights[j].add_to(sums);
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
      up[i] = 1.f / kWeightFactor;
      if (TYPE == FLOAT16 && !HALF_SUMS) up[i] *= m + i < num_tokens ? factor[m + i] : 0.f;
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
