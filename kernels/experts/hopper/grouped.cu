// The products of experts for many tokens on the tensor cores of Hopper: rows sorted by expert, times weights
// [experts, rows, K] in bfloat16, or in int4 in groups of 32 with float16 scales. ../README.md says how it
// works. The host defines NAME, K, N (features), BITS, GATE (the activation of a gate, or 0), TOP_K, BLOCK_M,
// STAGES, X_STAGES, MMA_DTYPE, which is BFLOAT16, F16_ACCUMULATE, which is 0, OFFSET and SHARED_BYTES, and
// writes wgmma.cuh.

#include "activations.cuh"
#include "results.cuh"
#include "weights.cuh"
#include "wgmma.cuh"

namespace {

// Loads the zeros of half a step, as they are stored, of the thread's two rows.
__device__ __forceinline__ void load_zeros(u32 (&zeros)[2], u32 zero_at) {
  zeros[0] = zeros[1] = 0;
  if (OFFSET == ZERO_POINT) {
    zeros[0] = ld_shared_u8(zero_at);
    zeros[1] = ld_shared_u8(zero_at + 8 * kZeroRowBytes);
  } else if (OFFSET == MINIMUM) {
    zeros[0] = ld_shared_u16(zero_at);
    zeros[1] = ld_shared_u16(zero_at + 8 * kZeroRowBytes);
  }
}

// A warp multiplies 16 rows of the weight of each tile; four warps issue a wgmma together.
struct Consumer {
  u32 smem, thread_w, scale_to, zero_to;
  const u8 *qdata, *scale, *zero;
  Results results;
  int warp;
  WeightPrefetcher prefetcher;
  u32 prefetch_stage = 0, stage = 0, last_stage = 0;  // in bytes
  u32 scale_at, zero_at;
  int scale_stage = 0;
  XState x_state{0, 0};

  __device__ __forceinline__ Consumer(u32 smem, int warp, const u8* qdata, const u8* scale, const u8* zero,
                                      u16* out, u32 out_rows)
      : smem(smem), qdata(qdata), scale(scale), zero(zero), results{out, out_rows, 0, 0}, warp(warp) {
    const int lane = threadIdx.x % 32;
    thread_w = smem + kSmemW + warp * 512 + lane * 16;
    scale_to = smem + kSmemScales + (warp * 16 + lane / kScaleSteps) * kScaleRowBytes;
    zero_to = smem + kSmemZeros + (warp * 16 + lane / kScaleSteps) * kZeroRowBytes;
    scale_at = scale_to + lane % 4 * 2;
    zero_at = zero_to + lane % 4 * (kZeroBytes / 8);
  }

  __device__ __forceinline__ void prefetch() {
    if (prefetcher.next(smem, warp))
      prefetcher.copy(qdata, scale, zero, thread_w + prefetch_stage, scale_to, zero_to);
    cp_async_commit();
    prefetch_stage = prefetch_stage == (STAGES - 1) * kWStageBytes ? 0 : prefetch_stage + kWStageBytes;
  }

  // The next 128 columns of activations. Descriptors of the stages differ in the low word alone.
  __device__ __forceinline__ u64 x_descriptor() const {
    const u64 first = wgmma_descriptor(smem + kSmemX);
    return first >> 32 << 32 | (u32)((u32)first + x_state.stage * (kXStageBytes / 16));
  }
  __device__ __forceinline__ void wait_for_x() {
    mbarrier_wait(smem + kSmemFull + 8 * x_state.stage, x_state.phase);
  }
  __device__ __forceinline__ void release_x() {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(smem + kSmemEmpty + 8 * x_state.stage);
    x_state.advance();
  }
  __device__ __forceinline__ void release_weights() {
    last_stage = stage;
    stage = stage == (STAGES - 1) * kWStageBytes ? 0 : stage + kWStageBytes;
  }

  // 256 columns of int4. K is permuted so that lane t of four converts block t of 32 columns.
  template <int Rows>
  __device__ __forceinline__ void multiply_int4(float (&sums)[Rows / 2]) {
    cp_async_wait<STAGES - 2>();
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 upper_words[4], lower_words[4];
      ld_shared_v4(upper_words, thread_w + stage + half * (kWStageBytes / 4));
      ld_shared_v4(lower_words, thread_w + stage + kWStageBytes / 2 + half * (kWStageBytes / 4));
      const u64 x = x_descriptor();
      const u32 half_scale_at = scale_at + half * 8;
      u32 zeros[2];
      load_zeros(zeros, zero_at + half * (kZeroBytes / 2));
      const Dequantizer<MMA_DTYPE> dequantizer(ld_shared_u16(half_scale_at),
                                               ld_shared_u16(half_scale_at + 8 * kScaleRowBytes), zeros[0],
                                               zeros[1]);
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        u32 a[4][4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int word = pair * 2 + j;
          dequantizer.template dequantize<0>(upper_words[word], a[2 * j][0], a[2 * j][2], a[2 * j + 1][0],
                                             a[2 * j + 1][2]);
          dequantizer.template dequantize<1>(lower_words[word], a[2 * j][1], a[2 * j][3], a[2 * j + 1][1],
                                             a[2 * j + 1][3]);
        }
        if (pair == 0) wait_for_x();
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 2; j++) {
          // 16 columns are 32 bytes; the high halves of the blocks are in the second slice of 64 columns.
          const int word = pair * 2 + j;
          wgmma(sums, a[2 * j], x + word * 2);
          wgmma(sums, a[2 * j + 1], x + kXStageBytes / 32 + word * 2);
        }
        wgmma_commit();
      }
      // Copies for later steps, while the tensor cores compute.
      if (half == 0) prefetch();
      wgmma_wait();
      release_x();
    }
    release_weights();
    const bool wraps = scale_stage == kScaleStages - 1;
    scale_at += wraps ? 16 - kScaleRowBytes : 16;
    zero_at += wraps ? kZeroBytes - kZeroRowBytes : kZeroBytes;
    scale_stage = wraps ? 0 : scale_stage + 1;
  }

  // 128 columns of bfloat16, in the same order: in two steps, of 16 columns of each lane's block.
  template <int Rows>
  __device__ __forceinline__ void multiply_bf16(float (&sums)[Rows / 2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      cp_async_wait<STAGES - 2>();
      u32 a[4][4];
#pragma unroll
      for (int row = 0; row < 2; row++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          u32 words[4];
          ld_shared_v4(words, thread_w + stage + (row * 2 + i) * (kWStageBytes / 4));
#pragma unroll
          for (int j = 0; j < 2; j++) {
            a[i * 2 + j][row] = __byte_perm(words[j * 2], words[j * 2 + 1], 0x5410);
            a[i * 2 + j][row + 2] = __byte_perm(words[j * 2], words[j * 2 + 1], 0x7632);
          }
        }
      const u64 x = x_descriptor() + half * (kXStageBytes / 32);
      if (half == 0) wait_for_x();
      wgmma_fence();
#pragma unroll
      for (int word = 0; word < 4; word++) wgmma(sums, a[word], x + word * 2);
      wgmma_commit();
      prefetch();
      wgmma_wait();
      release_weights();
    }
    release_x();
  }

  // A tile of at most Rows rows.
  template <int Rows>
  __device__ __forceinline__ void multiply(const Tile& tile) {
    float sums[Rows / 2];
#pragma unroll
    for (int j = 0; j < Rows / 2; j++) sums[j] = 0;
#pragma unroll 1
    for (int columns = 0; columns < K; columns += kInt4 ? 256 : 128) {
      if constexpr (kInt4)
        multiply_int4<Rows>(sums);
      else
        multiply_bf16<Rows>(sums);
    }
    // The scratch is in the stage of weights that the warp has read last.
    results.scratch = smem + kSmemW + warp * 512 + last_stage;
    if constexpr (GATE != 0)
      store_gated<Rows>(sums, results, tile, warp);
    else
      store_plain<Rows>(sums, results, tile, warp);
  }
};

}  // namespace

// Grid: at most one CTA for each multiprocessor. `order` and `tiles` are not __restrict__: loads of what
// nothing writes could be moved in front of the wait for the kernel that wrote it.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    NAME(const u8* __restrict__ x,      // [K / 64][x_rows][64] bfloat16, as reorder_as_is.cu makes it
         const int* order,              // [rows]: assignments sorted by expert, token * TOP_K + choice
         const int* tiles,              // [1 + most records, 4], as place_kernel makes it for BLOCK_M
         const u8* __restrict__ qdata,  // [experts, N or with a gate 2 * N, K]
         const u8* __restrict__ scale, const u8* __restrict__ zero,
         u16* __restrict__ out,  // with a gate [N / 64][out_rows][64], sorted; else [rows, N], by assignment
         int x_rows, int out_rows, void*, void*) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 smem = (u32)__cvta_generic_to_shared(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  // The first product lets the next kernel start only when all in front of it have ended: so the second may
  // read the list of tiles, and load weights, before it waits.
  if (GATE) wait_for_previous_grid();
  launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < X_STAGES; i++) {
      mbarrier_init(smem + kSmemFull + 8 * i, kLoadWarps * 32);
      mbarrier_init(smem + kSmemEmpty + 8 * i, kMmaWarps);
    }
    mbarrier_init_fence();
  }
  if (threadIdx.x < kAhead) store_tile(smem, threadIdx.x, find_tile(tiles, threadIdx.x));
  __syncthreads();
  if (warp >= kMmaWarps) {
    leave_registers<kLoadRegisters>();
    if (!GATE) wait_for_previous_grid();
    load_activations(smem, warp - kMmaWarps, x, order, tiles, x_rows);
  } else {
    take_registers<kMmaRegisters>();
    Consumer consumer(smem, warp, qdata, scale, zero, out, out_rows);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) consumer.prefetch();
    if (!GATE) wait_for_previous_grid();
#pragma unroll 1
    for (int i = 0;; i++) {
      const Tile tile = load_tile(smem, i);
      if (tile.expert < 0) break;
      consumer.results.targets = smem + kSmemTargets + i % kTargetPlaces * BLOCK_M * 4;
      if (tile.rows <= 32)
        consumer.multiply<32>(tile);
      else if (tile.rows <= 64)
        consumer.multiply<64>(tile);
      else if (tile.rows <= 80)
        consumer.multiply<80>(tile);
      else
        consumer.multiply<BLOCK_M>(tile);
    }
  }
}
