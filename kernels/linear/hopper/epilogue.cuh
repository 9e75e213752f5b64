// Sums of gemm.cu, from registers to memory.

#pragma once

#include "fixup.cuh"
#include "dequantize.cuh"

namespace {

// Parts of a tile are in memory as they lie in registers, eight numbers of a lane for sixteen tokens at a
// time: as bfloat16 where activations may be rounded, which takes half the time.
constexpr bool kNarrow = TYPE == BFLOAT16 || HALF_SUMS;
constexpr int kPartBytes = BLOCK_M * (kNarrow ? 32 : 64);  // of a warp

// What no word of a part is: it would be NaN, and another NaN is stored for it.
constexpr u32 kMissing = 0xffffffffu;

struct Eight {
  u32 words[kNarrow ? 4 : 8];

  __device__ __forceinline__ void set(u32 all) {
#pragma unroll
    for (u32& word : words) word = all;
  }
  // `from` is where the lane's first four words are.
  __device__ __forceinline__ void see(const u8* from) {
#pragma unroll
    for (int i = 0; i < (kNarrow ? 1 : 2); i++) {
      u32 four[4];
      see_words(four, from + i * 512);
#pragma unroll
      for (int j = 0; j < 4; j++) words[4 * i + j] = four[j];
    }
  }
  __device__ __forceinline__ bool there() const {
    u32 most = 0;
#pragma unroll
    for (u32 word : words) most = max(most, word);
    return most != kMissing;
  }
  __device__ __forceinline__ void add_to(float* sums) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const u32 word = words[kNarrow ? i / 2 : i];
      sums[i] += __uint_as_float(!kNarrow ? word : i % 2 ? word & 0xffff0000u : word << 16);
    }
  }
};

// Powers of two that the tokens of a tile were divided by in a run: a warp brings them before its products.
struct TokenFactors {
  u32 near;          // in shared memory
  const float* far;  // of the tile's first token
  int tokens;        // that there are from there on

  __device__ __forceinline__ float from_far(int m) const { return m < tokens ? far[m] : 0.f; }
  __device__ __forceinline__ void bring() const {
    if (kFactorBytes == 0) return;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < BLOCK_M; i += 32) {
      const int m = i + threadIdx.x % 32;
      if (m < BLOCK_M) store4(near + m * 4, __float_as_uint(from_far(m)));
    }
    __syncwarp();
  }
  __device__ __forceinline__ void load_two(float& low, float& high, int m) const {
    if (kFactorBytes == 0) {
      low = from_far(m), high = from_far(m + 1);
    } else {
      u32 two[2];
      load8(two, near + m * 4);
      low = __uint_as_float(two[0]), high = __uint_as_float(two[1]);
    }
  }
};

// The sums of a thread.
__device__ __forceinline__ void as_floats(const float (&sums)[BLOCK_M / 2], const RowFactors&,
                                          const TokenFactors&, float (&to)[BLOCK_M / 2]) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j++) to[j] = sums[j];
}
__device__ __forceinline__ void as_floats(const u32 (&sums)[BLOCK_M / 4], const RowFactors& factors,
                                          const TokenFactors& of_tokens, float (&to)[BLOCK_M / 2]) {
  const float back[2] = {factors.back<0>(), factors.back<1>()};
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    float low, high;
    of_tokens.load_two(low, high, j * 8 + threadIdx.x % 4 * 2);
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
  to += threadIdx.x % 32 * 16;
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j += kNarrow ? 8 : 4) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      words[i] = min(kNarrow ? wide_pair(sums[j + 2 * i], sums[j + 2 * i + 1]) : __float_as_uint(sums[j + i]),
                     kMissing - 1);
    put_words(to, words);
    to += 512;
  }
}

__device__ __forceinline__ u8* part_of(u8* partial, u32 slot, int warp) {
  return partial + (u64)slot * (kWarps * kPartBytes) + warp * kPartBytes;
}

// Parts of sixteen tokens that a warp reads at once: with more, the order's programs find no registers beside
// this one's.
constexpr u32 kAtOnce = kNarrow ? 8 : 4;

// So many chunks of sixteen tokens of the sum of a warp's parts of a tile, in the order of the programs that
// made them, several on their way at once; as soon as all their words are seen. `from` is the first part.
template <int Chunks>
__device__ __forceinline__ void sum_parts(float (&sums)[Chunks * 8], const Task& task, const u8* from) {
  constexpr u32 kParts = kAtOnce / Chunks, kSlotBytes = kWarps * kPartBytes;
  from += threadIdx.x % 32 * 16;
#pragma unroll
  for (int j = 0; j < Chunks * 8; j++) sums[j] = 0.f;
#pragma unroll 1
  for (u32 i = 0; i < task.count; i += kParts) {
    Eight eights[kAtOnce];
#pragma unroll
    for (u32 j = 0; j < kAtOnce; j++) eights[j].set(i + j % kParts < task.count ? kMissing : 0);
    bool there;
    do {
#pragma unroll
      for (u32 j = 0; j < kAtOnce; j++)
        if (!eights[j].there())
          eights[j].see(from + (u64)(task.slot(i + j % kParts) - task.first_slot) * kSlotBytes +
                        j / kParts * (kPartBytes / kChunks));
      there = true;
#pragma unroll
      for (u32 j = 0; j < kAtOnce; j++) there = there && eights[j].there();
    } while (__any_sync(0xffffffff, !there));
#pragma unroll
    for (u32 j = 0; j < kAtOnce; j++) eights[j].add_to(sums + j / kParts * 8);
  }
}

// Where results go.
struct Place {
  Out* out;
  const Bias* bias;
  const float* factor;
  u32 scratch;  // the 512 bytes that the warp's weights left in each of the four pieces of a stage
  int num_rows, num_tokens;
};

// A warp's 16 rows n of a tile. Two bytes wide, they are transposed in shared memory.
template <int Tokens>
__device__ __forceinline__ void store(const float (&sums)[Tokens / 2], const Place& to, int n, int first_m) {
  const auto [out, bias, factor, scratch, num_rows, num_tokens] = to;
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
          u16* at = (u16*)out + (u64)token * num_rows + first;
          if (num_rows % 8 == 0) {
            if (first < num_rows) *(uint4*)at = make_uint4(words[0], words[1], words[2], words[3]);
          } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
              if (first + i < num_rows) at[i] = (u16)(words[i / 2] >> (i % 2 * 16));
          }
        }
      }
      __syncwarp();
    }
  }
}

// So many chunks of a tile's sum, for a warp's rows.
template <int Chunks>
__device__ __forceinline__ void sum_and_store(const Task& task, int chunk, u8* partial, int warp,
                                              const Place& to) {
  float sums[Chunks * 8];
  sum_parts<Chunks>(sums, task, part_of(partial, task.first_slot, warp) + chunk * (kPartBytes / kChunks));
  store<Chunks * 16>(sums, to, task.first_n + warp * 16, task.first_m + chunk * 16);
}

}  // namespace
