// How sums lie in the workspace in global memory: partials of shared tiles, and spilled sums of k segments.
//
//   partials  [2 * num_ctas slots][kMmaWarps][kChunks][1, or 2 if float32][32 lanes][16 bytes]
//   spilled   [num_ctas][kMmaWarps][BLOCK_M / 8][32 lanes][16 bytes], where sums are in float16
//
// A partial lies as the registers of its warps hold it, chunk by chunk of 16 tokens. It is stored as bfloat16
// where activations need not be exact, which takes half the time. How it passes from CTA to CTA is told in
// fixup.cuh.

#pragma once

#include "tile_scheduler.cuh"

namespace {

constexpr int kChunks = BLOCK_M / 16;  // of a tile
constexpr bool kBf16Partials = MMA_DTYPE == BFLOAT16 || F16_ACCUMULATE;
constexpr int kChunkBytes = kBf16Partials ? 512 : 1024;  // of a warp
constexpr int kWarpPartialBytes = kChunks * kChunkBytes;
constexpr int kPartialBytes = kMmaWarps * kWarpPartialBytes;

// A word of a partial that has not been stored yet.
constexpr u32 kNotReady = 0xffffffffu;

__device__ __forceinline__ u8* partial_address(u8* partials, u32 slot, int warp) {
  return partials + (u64)slot * kPartialBytes + warp * kWarpPartialBytes;
}

// All lanes of a warp store kNotReady to a slot.
__device__ __forceinline__ void clear_partial(u8* partials, int slot) {
  u8* to = partials + (u64)slot * kPartialBytes + threadIdx.x % 32 * 16;
#pragma unroll 1
  for (int i = 0; i < kPartialBytes; i += 512)
    st_relaxed_v4(to + i, {kNotReady, kNotReady, kNotReady, kNotReady});
}

// A lane's eight sums of a chunk, as they lie in memory.
struct PartialFragment {
  u32 words[kBf16Partials ? 4 : 8];

  __device__ __forceinline__ void fill(u32 value) {
#pragma unroll
    for (u32& word : words) word = value;
  }
  // Loads them, ready or not. `from` is the address of the lane's first four words.
  __device__ __forceinline__ void poll(const u8* from) {
#pragma unroll
    for (int i = 0; i < (kBf16Partials ? 1 : 2); i++) {
      u32 four[4];
      ld_relaxed_v4(four, from + i * 512);
#pragma unroll
      for (int j = 0; j < 4; j++) words[4 * i + j] = four[j];
    }
  }
  __device__ __forceinline__ bool is_ready() const {
    u32 largest = 0;
#pragma unroll
    for (u32 word : words) largest = max(largest, word);
    return largest != kNotReady;
  }
  __device__ __forceinline__ void add_to(float* sums) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const u32 word = words[kBf16Partials ? i / 2 : i];
      sums[i] += __uint_as_float(!kBf16Partials ? word : i % 2 ? word & 0xffff0000u : word << 16);
    }
  }
};

// Stores a warp's rows of a partial. min() makes another NaN of one that would be kNotReady.
__device__ __forceinline__ void store_partial(const float (&sums)[BLOCK_M / 2], u8* to) {
  to += threadIdx.x % 32 * 16;
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j += kBf16Partials ? 8 : 4) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      words[i] = min(
          kBf16Partials ? pack_bf16x2(sums[j + 2 * i], sums[j + 2 * i + 1]) : __float_as_uint(sums[j + i]),
          kNotReady - 1);
    st_relaxed_v4(to, words);
    to += 512;
  }
}

// Where a CTA has steps of more than one k segment of a tile, a thread spills the sums of the segments so
// far, and adds them up again after the next one: there are not enough registers to keep them.
__device__ __forceinline__ float4* spill_address(u8* partials, const TileScheduler& scheduler, int warp) {
  static_assert(!F16_ACCUMULATE || kBf16Partials, "partials leave half of the workspace");
  u8* spilled = partials + (u64)(2 * scheduler.num_ctas) * kPartialBytes;
  return (float4*)spilled + (u64)(scheduler.cta * kMmaWarps + warp) * (BLOCK_M * 4) + threadIdx.x % 32;
}
__device__ __forceinline__ void spill(const float (&sums)[BLOCK_M / 2], float4* to) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++)
    to[j * 32] = make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
}
__device__ __forceinline__ void add_spilled(float (&sums)[BLOCK_M / 2], const float4* from) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const float4 four = from[j * 32];
    sums[4 * j] += four.x;
    sums[4 * j + 1] += four.y;
    sums[4 * j + 2] += four.z;
    sums[4 * j + 3] += four.w;
  }
}

}  // namespace
