// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n], for int4 weights in groups of 32 with float16
// scales, on the tensor cores of Hopper. README.md says how it works. Defined from outside: NAME, K, BLOCK_M,
// WARPGROUPS, STAGES, X_STAGES, OFFSET, HAS_BIAS, OUT, BIAS; and in products.cuh the product itself, whose
// text depends on BLOCK_M.

#include "products.cuh"
#include "ptx.cuh"

#define SYMMETRIC 0
#define ZERO_POINT 1
#define MINIMUM 2

namespace {

constexpr int kWarps = WARPGROUPS * 4;  // that multiply; one more brings activations
constexpr int kThreads = kWarps * 32 + 32;
constexpr int kBlockN = WARPGROUPS * 64;  // weight rows of a tile
constexpr int kSteps = K / 256;
constexpr int kZero = OFFSET == MINIMUM      ? 16
                      : OFFSET == ZERO_POINT ? 8
                                             : 0;  // bytes of zeros of a row and step
constexpr float kWeightFactor = 16.f;  // weights are multiplied by it, so that small ones stay normal numbers

// Shared memory. A stage of weights is a step of 256 columns, one of activations half a step. Scales of eight
// steps are copied at once: rows of them start anywhere in a sector, and of short stretches most would be
// read in vain. Their ring is longer by that.
constexpr int kUnit = 4;
constexpr int kScaleStages = STAGES + kUnit - 1;
constexpr int kXBytes = BLOCK_M * 256;
constexpr int kWBytes = kBlockN * 128;
constexpr int kSBytes = kBlockN * 16;
constexpr int kZBytes = kBlockN * kZero;
constexpr int kXAt = 0;
constexpr int kWAt = kXAt + X_STAGES * kXBytes;
constexpr int kSAt = kWAt + STAGES * kWBytes;
constexpr int kZAt = kSAt + kScaleStages * kSBytes;
constexpr int kFullAt = kZAt + kScaleStages * kZBytes;
constexpr int kEmptyAt = kFullAt + X_STAGES * 8;
static_assert(kEmptyAt + X_STAGES * 8 == SHARED_BYTES, "the host computes the same");

typedef Number<OUT>::Bits Out;
typedef Number<BIAS>::Bits Bias;

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

// One thread brings activations, which lie as [K / 64][rows][64], swizzled as in shared memory.
__device__ __forceinline__ void produce(const Work& work, u32 base, const u8* x, int rows_of_x) {
  wait_for_previous();
  const u64 slice = (u64)rows_of_x * 128;
  Part part = work.start();
  int stage = 0;
  u32 parity = 1;  // the first use of a stage need not wait
  while (work.next(part)) {
    const u8* from = x + part.first * 4 * slice + (u64)work.first_m(part) * 128;
    for (int i = part.first * 2; i < part.last * 2; i++) {
      const u32 full = base + kFullAt + 8 * stage, to = base + kXAt + stage * kXBytes;
      barrier_wait(base + kEmptyAt + 8 * stage, parity);
      barrier_expect(full, kXBytes);
      copy_bulk(to, from, kXBytes / 2, full);
      copy_bulk(to + kXBytes / 2, from + slice, kXBytes / 2, full);
      from += 2 * slice;
      if (++stage == X_STAGES) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

// Copies a thread's weights, and a lane's share of its warp's scales, to shared memory, ahead of their use.
// No other thread reads the weights, and no other warp the scales.
struct Ahead {
  const u8 *upper, *lower;  // rows r and r + 8 of a warp's 16
  const u8 *scale, *zero;
  int step, scale_stage, first_row, last_row;
  Part part;

  __device__ __forceinline__ Ahead(const Work& work, const u8* scale, const u8* zero, int num_rows)
      : scale(scale), zero(zero), step(0), scale_stage(0), last_row(num_rows - 1), part(work.start()) {}

  __device__ __forceinline__ bool next(const Work& work, const u8* qdata, int warp) {
    if (step < part.last) return true;
    if (!work.next(part)) return false;
    const int lane = threadIdx.x % 32;
    first_row = work.first_n(part) + warp * 16;
    const u8* q = qdata + part.first * 128 + lane % 4 * 16;
    // Rows beyond the last repeat it: what they give is not stored.
    upper = q + (u64)min(first_row + lane / 4, last_row) * (K / 2);
    lower = q + (u64)min(first_row + 8 + lane / 4, last_row) * (K / 2);
    step = part.first;
    return true;
  }

  __device__ __forceinline__ void copy(u32 to, u32 s_to, u32 z_to) {
    copy16(to, upper);
    copy16(to + kWBytes / 4, upper + 64);
    copy16(to + kWBytes / 2, lower);
    copy16(to + kWBytes / 4 * 3, lower + 64);
    upper += 128;
    lower += 128;
    if (step % kUnit == 0 || step == part.first) {
      const int further = (int)(threadIdx.x % kUnit) - step % kUnit;
      const bool mine = further >= 0 && step + further < part.last;
      int stage = scale_stage + further;
      if (stage >= kScaleStages) stage -= kScaleStages;
      if (mine) {
        constexpr int kRows = 32 / kUnit;  // of which a warp copies at once, a step of each per lane
#pragma unroll
        for (int i = 0; i < 16; i += kRows) {
          const u64 row = min(first_row + i + (int)(threadIdx.x % 32) / kUnit, last_row);
          copy16(s_to + stage * kSBytes + i * 16, scale + row * (K / 16) + (step + further) * 16);
          const u8* from = zero + (row * kSteps + step + further) * kZero;
          if (OFFSET == ZERO_POINT) copy8(z_to + stage * kZBytes + i * 8, from);
          if (OFFSET == MINIMUM) copy16(z_to + stage * kZBytes + i * 16, from);
        }
      }
    }
    if (++scale_stage == kScaleStages) scale_stage = 0;
    step++;
  }
};

// What turns the integers of a block of 32 of one row into weights, all in pairs.
struct Block {
  u32 times, shifted, plus;

  __device__ __forceinline__ Block(u32 scale, u32 zero) {
    const u32 factor = 0x4c004c00u;  // kWeightFactor
    times = mul2(twice(scale), factor);
    if (OFFSET == MINIMUM) {
      shifted = plus = mul2(twice(zero), factor);
    } else if (OFFSET == ZERO_POINT) {
      shifted = twice(zero | 0x6400u);    // 1024 + zero
      plus = sub2(0x63806380u, shifted);  // 960 - that: -(64 + zero)
    } else {
      shifted = 0x64086408u;
      plus = 0xd480d480u;
    }
  }

  // Eight int4 of a word: the low halves of bytes 0 and 2, of 1 and 3, and the high halves likewise.
  // Subtractions are exact, as in MARLIN (Frantar et al., 2024).
  __device__ __forceinline__ void weights(u32 word, u32& low_even, u32& low_odd, u32& high_even,
                                          u32& high_odd) const {
    const u32 other = word >> 8;
    u32 a = in_1024(word, 0x000f000fu), b = in_1024(other, 0x000f000fu);
    u32 c = in_1024(word, 0x00f000f0u), d = in_1024(other, 0x00f000f0u);
    const u32 sixteenth = 0x2c002c00u;
    if (OFFSET == MINIMUM) {
      low_even = fma2(sub2(a, 0x64006400u), times, plus);
      low_odd = fma2(sub2(b, 0x64006400u), times, plus);
      high_even = fma2(fma2(c, sixteenth, 0xd400d400u), times, plus);
      high_odd = fma2(fma2(d, sixteenth, 0xd400d400u), times, plus);
    } else {
      low_even = mul2(sub2(a, shifted), times);
      low_odd = mul2(sub2(b, shifted), times);
      high_even = mul2(fma2(c, sixteenth, plus), times);
      high_odd = mul2(fma2(d, sixteenth, plus), times);
    }
  }

 private:
  // 1024 plus the bits that the mask leaves.
  static __device__ __forceinline__ u32 in_1024(u32 word, u32 mask) {
    return masked_or(word, mask, 0x64006400u);
  }
};

// A warp's part of a tile as it lies in registers.
__device__ __forceinline__ void store_part(const float (&sums)[BLOCK_M / 2], float* to) {
  float4* at = (float4*)to + threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++)
    at[j * 32] = make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
}

// The sum of a warp's parts of a tile, in the order of the programs that made them, several on their way at
// once.
__device__ __forceinline__ void load_parts(float (&sums)[BLOCK_M / 2], const Work& work, const Part& part,
                                           int first, int last, const float* from) {
  constexpr int kFours = BLOCK_M / 8;
  constexpr int kAtOnce = BLOCK_M <= 64 ? 96 / BLOCK_M : 1;
#pragma unroll
  for (int j = 0; j < BLOCK_M / 2; j++) sums[j] = 0.f;
#pragma unroll 1
  for (int of = first; of <= last; of += kAtOnce) {
    float4 fours[kAtOnce][kFours];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      int slot = 0;
      const bool has = of + i <= last && work.slot(part, of + i, slot);
      const float4* at = (const float4*)(from + (u64)slot * (kBlockN * BLOCK_M)) + threadIdx.x % 32;
#pragma unroll
      for (int j = 0; j < kFours; j++)
        fours[i][j] = has ? __ldcg(at + j * 32) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
#pragma unroll
      for (int j = 0; j < kFours; j++) {
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
__device__ __forceinline__ void store(const float (&sums)[BLOCK_M / 2], Out* out, const Bias* bias,
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
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const int m = first_m + j * 8 + lane % 4 * 2;
    const float up[2] = {m < num_tokens ? factor[m] * (1.f / kWeightFactor) : 0.f,
                         m + 1 < num_tokens ? factor[m + 1] * (1.f / kWeightFactor) : 0.f};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Out value = Number<OUT>::store(sums[4 * j + i] * up[i % 2] + add[i / 2]);
      const int token = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
      if (kShort)  // a piece holds 16 tokens of 16 numbers
        store2(scratch + j / 2 % kPieces * (kWBytes / 4) + ((j % 2 * 8 + token) * 16 + row) * 2, (u16)value);
      else if (first_m + j * 8 + token < num_tokens && n + row < num_rows)
        out[(u64)(first_m + j * 8 + token) * num_rows + n + row] = value;
    }
    if (kShort && (j % (2 * kPieces) == 2 * kPieces - 1 || j == BLOCK_M / 8 - 1)) {
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

// Warps that multiply: 16 rows of a tile each, four warps a product.
__device__ __forceinline__ void consume(const Work& work, u32 base, int warp, const float* factor,
                                        const u8* qdata, const u8* scale, const u8* zero, const Bias* bias,
                                        Out* out, float* partial, int* tickets, int num_rows,
                                        int num_tokens) {
  const int lane = threadIdx.x % 32;
  const u32 warp_at = base + kWAt + warp * 512, thread_at = warp_at + lane * 16;
  const u32 s_to = base + kSAt + (warp * 16 + lane / kUnit) * 16;
  const u32 z_to = base + kZAt + (warp * 16 + lane / kUnit) * kZero;
  const u32 s_at = base + kSAt + (warp * 16 + lane / 4) * 16 + lane % 4 * 2;
  const u32 z_at = base + kZAt + (warp * 16 + lane / 4) * kZero + lane % 4 * (kZero / 8);

  Ahead ahead(work, scale, zero, num_rows);
  // Weights are not written by the kernel in front; all else waits for its end.
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (ahead.next(work, qdata, warp)) ahead.copy(thread_at + i * kWBytes, s_to, z_to);
    commit_copies();
  }
  wait_for_previous();

  Part part = work.start();
  u32 stage_at = 0, read_at = 0, ahead_at = (STAGES - 1) * kWBytes, parity = 0;
  int scale_stage = 0, x_stage = 0;
  while (work.next(part)) {
    float sums[BLOCK_M / 2];
#pragma unroll
    for (int j = 0; j < BLOCK_M / 2; j++) sums[j] = 0.f;
#pragma unroll 1
    for (int left = part.last - part.first; left > 0; left--) {
      wait_for_copies<STAGES - 2>();
      __syncwarp();
      if (ahead.next(work, qdata, warp)) ahead.copy(thread_at + ahead_at, s_to, z_to);
      commit_copies();
      ahead_at = ahead_at == (STAGES - 1) * kWBytes ? 0 : ahead_at + kWBytes;
#pragma unroll
      for (int half = 0; half < 2; half++) {  // 128 columns: lane t of four has block t of rows r and r + 8
        u32 upper_words[4], lower_words[4];
        load16(upper_words, thread_at + stage_at + half * (kWBytes / 4));
        load16(lower_words, thread_at + stage_at + kWBytes / 2 + half * (kWBytes / 4));
        const u32 s = s_at + scale_stage * kSBytes + half * 8;
        const u32 z = z_at + scale_stage * kZBytes + half * (kZero / 2);
        u32 zeros[2] = {0, 0};
        if (OFFSET == ZERO_POINT) {
          zeros[0] = load1(z);
          zeros[1] = load1(z + 8 * kZero);
        } else if (OFFSET == MINIMUM) {
          zeros[0] = load2(z);
          zeros[1] = load2(z + 8 * kZero);
        }
        const Block upper(load2(s), zeros[0]), lower(load2(s + 8 * 16), zeros[1]);
        const u64 x = describe_rows_of_128(base + kXAt + x_stage * kXBytes);
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
          u32 a[4][4];
#pragma unroll
          for (int j = 0; j < 2; j++) {
            const int word = pair * 2 + j;
            upper.weights(upper_words[word], a[2 * j][0], a[2 * j][2], a[2 * j + 1][0], a[2 * j + 1][2]);
            lower.weights(lower_words[word], a[2 * j][1], a[2 * j][3], a[2 * j + 1][1], a[2 * j + 1][3]);
          }
          if (pair == 0) barrier_wait(base + kFullAt + 8 * x_stage, parity);
          products_fence();
#pragma unroll
          for (int j = 0; j < 2; j++) {
            // 16 columns are 32 bytes; the high halves of the blocks are in the second slice of 64 columns.
            const int word = pair * 2 + j;
            product(sums, a[2 * j], x + word * 2);
            product(sums, a[2 * j + 1], x + kXBytes / 32 + word * 2);
          }
          products_commit();
        }
        products_wait();
        if (lane == 0) barrier_arrive(base + kEmptyAt + 8 * x_stage);
        if (++x_stage == X_STAGES) {
          x_stage = 0;
          parity ^= 1;
        }
      }
      read_at = stage_at;
      stage_at = stage_at == (STAGES - 1) * kWBytes ? 0 : stage_at + kWBytes;
      if (++scale_stage == kScaleStages) scale_stage = 0;
    }
    if (part.last - part.first < kSteps) {
      // Of the programs' warps that have these rows, the one that comes last finds all parts in memory, sums
      // them, and leaves the ticket as it was.
      float* parts = partial + warp * 16 * BLOCK_M;
      store_part(sums, parts + (u64)part.slot * (kBlockN * BLOCK_M));
      int first, last;
      const int others = work.share(part, first, last) - 1;
      __syncwarp();
      int before = 0;
      if (lane == 0) {
        int* ticket = tickets + (part.tile - work.turns * work.programs) * kWarps + warp;
        __threadfence();
        before = atomicAdd(ticket, 1);
        if (before == others) *ticket = 0;
        __threadfence();
      }
      const bool is_last = __shfl_sync(0xffffffff, before, 0) == others;
      __syncwarp();
      if (!is_last) continue;
      load_parts(sums, work, part, first, last, parts);
    }
    store(sums, out, bias, factor, warp_at + read_at, work.first_n(part) + warp * 16, work.first_m(part),
          num_rows, num_tokens);
  }
}

}  // namespace

// A program per block; each of its warpgroups multiplies 64 rows of a tile.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    NAME(const u8* __restrict__ x,          // [K / 64][rows_of_x][64] float16, as order_kernel makes it
         const float* __restrict__ factor,  // [num_tokens]
         const u8* __restrict__ qdata, const u8* __restrict__ scale, const u8* __restrict__ zero,
         const Bias* __restrict__ bias, Out* __restrict__ out,
         float* __restrict__ partial,  // [2 * programs][BLOCK_N / 16][BLOCK_M / 8][32][4]
         int* __restrict__ tickets,    // [programs][warps], zero before and after
         int rows_and_two, int tokens_and_two, int rows_of_x, void*, void*) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int num_rows = rows_and_two - 2, num_tokens = tokens_and_two - 2;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < X_STAGES; i++) {
      barrier_init(base + kFullAt + 8 * i, 1);
      barrier_init(base + kEmptyAt + 8 * i, kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const Work work(num_rows, num_tokens);
  if (warp == kWarps) {
    if (threadIdx.x == kWarps * 32) produce(work, base, x, rows_of_x);
  } else {
    consume(work, base, warp, factor, qdata, scale, zero, bias, out, partial, tickets, num_rows, num_tokens);
  }
}
