// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n] on the tensor cores of Hopper, for int4 weights in
// groups of 32 with float16 scales. README.md says how it works. The host defines NAME, K, BLOCK_M,
// WARPGROUPS, STAGES, X_STAGES, MMA_DTYPE, F16_ACCUMULATE, SEGMENT_STEPS, OFFSET, HAS_BIAS, OUT_DTYPE,
// BIAS_DTYPE and SHARED_BYTES, and writes wgmma.cuh, whose one instruction depends on BLOCK_M, MMA_DTYPE and
// F16_ACCUMULATE.

#include "fixup.cuh"
#include "producer.cuh"
#include "wgmma.cuh"

namespace {

// Whether a thread issues the copies for later steps behind the first products of a step, while the tensor
// cores compute these, and not in front of them. With many sums in float32 there are too few registers for
// it.
constexpr bool kPrefetchLate = F16_ACCUMULATE || BLOCK_M <= 64;

// Loads the scales of both halves of a step, those of the thread's two rows in one word. Returns, for
// RowFactors, the largest magnitude of each row's scales and of a sixteenth of its minima.
__device__ __forceinline__ u32 load_scales(u32 (&scales)[2], u32 scale_at, u32 zero_at) {
#pragma unroll
  for (int half = 0; half < 2; half++)
    scales[half] =
        ld_shared_u16(scale_at + half * 8) | ld_shared_u16(scale_at + half * 8 + 8 * kScaleRowBytes) << 16;
  u32 sizes = max_u16x2(abs_f16x2(scales[0]), abs_f16x2(scales[1]));
  if (OFFSET == MINIMUM) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const u32 at = zero_at + half * (kZeroBytes / 2);
      const u32 minima = ld_shared_u16(at) | ld_shared_u16(at + 8 * kZeroRowBytes) << 16;
      sizes = max_u16x2(sizes, abs_f16x2(mul_f16x2(minima, 0x2c002c00u)));
    }
  }
  return sizes;
}

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

// A warp multiplies 16 rows of each tile; four warps issue a wgmma together. Then it stores the results of a
// whole tile, or its partial of a shared one, and at the end of the CTA's range it does its share of the
// fixup.
__device__ __forceinline__ void consume(const TileScheduler& scheduler, u32 smem, int warp,
                                        const float* factor, const u8* qdata, const u8* scale, const u8* zero,
                                        const Bias* bias, Out* out, u8* partials, int out_features,
                                        int num_tokens) {
  const int lane = threadIdx.x % 32;
  const u32 warp_w = smem + kSmemW + warp * 512, thread_w = warp_w + lane * 16;
  const u32 scale_to = smem + kSmemScales + (warp * 16 + lane / kScaleSteps) * kScaleRowBytes;
  const u32 zero_to = smem + kSmemZeros + (warp * 16 + lane / kScaleSteps) * kZeroRowBytes;

  WeightPrefetcher prefetcher(scheduler);
  u32 prefetch_stage = 0;  // in bytes, as the other stages below
  const auto prefetch = [&] {
    if (prefetcher.next(scheduler, warp, out_features))
      prefetcher.copy(qdata, scale, zero, thread_w + prefetch_stage, scale_to, zero_to);
    cp_async_commit();
    prefetch_stage = prefetch_stage == (STAGES - 1) * kWStageBytes ? 0 : prefetch_stage + kWStageBytes;
  };
  // The kernel in front does not write the weights, but it may write everything else.
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) prefetch();
  wait_for_previous_grid();

  WorkTileInfo work = scheduler.initial_work();
  u32 stage = 0, last_stage = 0;
  // Addresses that are carried from step to step take fewer instructions than addresses computed in each.
  u32 scale_at = scale_to + lane % 4 * 2, zero_at = zero_to + lane % 4 * (kZeroBytes / 8);
  int scale_stage = 0;
  PipelineState<kXGroups> x_state{0, 0};
  const u32 factor_smem = smem + kSmemFactors + warp * kFactorBytes;
  const u64 first_x = wgmma_descriptor(smem + kSmemX);
  while (scheduler.next_work(work)) {
    RowFactors row_factors;
    float sums[BLOCK_M / 2];
    const int first_m = scheduler.first_m(work);
    int segment_begin = work.k_begin, segment_end = 0;
    do {
      const int segment = segment_begin / kSegmentSteps;
      segment_end = min(work.k_end, (segment + 1) * kSegmentSteps);
      const TokenFactors token_factors{factor_smem, factor + (u64)segment * num_tokens + first_m,
                                       num_tokens - first_m};
      if (F16_ACCUMULATE) token_factors.copy_to_smem();
      Accumulator accumulators[kAccumulators];
#pragma unroll
      for (int j = 0; j < kAccumulators; j++) accumulators[j] = 0;
#pragma unroll 1
      for (int steps = segment_end - segment_begin; steps > 0; steps--) {
        cp_async_wait<STAGES - 2>();
        __syncwarp();
        if (!kPrefetchLate) prefetch();
        u32 scales[2] = {0, 0};
        if (F16_ACCUMULATE) {
          const u32 sizes = load_scales(scales, scale_at, zero_at);
          row_factors.update(sizes, accumulators);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
          // A lane has a block of 32 of the half's 128 columns, lane t of four block t, of rows r and r + 8.
          u32 upper_words[4], lower_words[4];
          ld_shared_v4(upper_words, thread_w + stage + half * (kWStageBytes / 4));
          ld_shared_v4(lower_words, thread_w + stage + kWStageBytes / 2 + half * (kWStageBytes / 4));
          const u32 x_stage = x_state.index * kXGroup + half % kXGroup;
          // Descriptors of the stages differ in the low word alone.
          const u64 x = first_x >> 32 << 32 | (u32)((u32)first_x + x_stage * (kXStageBytes / 16));
          const u32 half_scale_at = scale_at + half * 8;
          u32 zeros[2];
          load_zeros(zeros, zero_at + half * (kZeroBytes / 2));
          const auto dequantizer = [&] {
            if constexpr (F16_ACCUMULATE)
              return F16SumDequantizer(scales[half], zeros[0] | zeros[1] << 16, row_factors);
            else
              return Dequantizer<MMA_DTYPE>(ld_shared_u16(half_scale_at),
                                            ld_shared_u16(half_scale_at + 8 * kScaleRowBytes), zeros[0],
                                            zeros[1]);
          }();
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
            if (pair == 0) mbarrier_wait(smem + kSmemFull + 8 * x_stage, x_state.phase);
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < 2; j++) {
              // 16 columns are 32 bytes; the high halves of the blocks are in the second slice of 64 columns.
              const int word = pair * 2 + j;
              wgmma(accumulators, a[2 * j], x + word * 2);
              wgmma(accumulators, a[2 * j + 1], x + kXStageBytes / 32 + word * 2);
            }
            wgmma_commit();
          }
          if (kPrefetchLate && half == 0) prefetch();
          wgmma_wait();
          if (lane == 0) mbarrier_arrive(smem + kSmemEmpty + 8 * x_stage);
          if (half % kXGroup == kXGroup - 1) x_state.advance();
        }
        last_stage = stage;
        stage = stage == (STAGES - 1) * kWStageBytes ? 0 : stage + kWStageBytes;
        const bool wraps = scale_stage == kScaleStages - 1;
        scale_at += wraps ? 16 - kScaleRowBytes : 16;
        zero_at += wraps ? kZeroBytes - kZeroRowBytes : kZeroBytes;
        scale_stage = wraps ? 0 : scale_stage + 1;
      }
      to_float(accumulators, row_factors, token_factors, sums);
      if (kSegmentSteps < kSteps) {
        if (segment_begin > work.k_begin) add_spilled(sums, spill_address(partials, scheduler, warp));
        if (segment_end < work.k_end) spill(sums, spill_address(partials, scheduler, warp));
      }
      segment_begin = segment_end;
    } while (kSegmentSteps < kSteps && segment_begin < work.k_end);
    // The scratch is in the stage of weights that the warp has read last.
    const Epilogue epilogue{out, bias, factor, warp_w + last_stage, out_features, num_tokens};
    if (work.is_whole()) {
      store<BLOCK_M>(sums, epilogue, scheduler.first_n(work) + warp * 16, first_m);
      continue;
    }
    mbarrier_wait(smem + kSmemCleared, 0);
    store_partial(sums, partial_address(partials, work.slot, warp));
    if (scheduler.has_next_work(work)) continue;  // all partials are stored before the warp waits for others
    mbarrier_wait(smem + kSmemPlanned, 0);
    u32 chunks = __shfl_sync(0xffffffff, ld_shared_u32(smem + kSmemChunks), 0);
#pragma unroll 1
    while (chunks != 0) {
      const int i = __ffs(chunks) - 1;
      const SharedTile tile = load_shared_tile(smem, i / kChunks);
      // Two chunks take as long as one if the fragments of all peers are loaded at once.
      if (kChunks > 1 && tile.num_peers <= kFragmentsInFlight / 2 && i % kChunks + 1 < kChunks &&
          chunks >> i & 2) {
        chunks &= ~(3u << i);
        fixup<2>(tile, i % kChunks, partials, warp, epilogue);
      } else {
        chunks &= ~(1u << i);
        fixup<1>(tile, i % kChunks, partials, warp, epilogue);
      }
    }
  }
}

// __launch_bounds__ for more threads than there are, so that a thread gets 80 registers at most, or 128,
// where that is enough: more CTAs of a reorder kernel that is launched early find room beside this kernel
// then.
constexpr bool kFewAccumulators = F16_ACCUMULATE || BLOCK_M <= 32;
constexpr int kBoundThreads = kFewAccumulators && WARPGROUPS == 4                     ? 768
                              : kFewAccumulators && WARPGROUPS == 2 && BLOCK_M == 128 ? 512
                                                                                      : kThreads;

}  // namespace

// Grid: num_ctas. Each warpgroup of a CTA multiplies 64 rows of its tiles; one warp more loads activations,
// and one plans the fixup.
extern "C" __global__ void __launch_bounds__(kBoundThreads, 1)
    NAME(const u8* __restrict__ x,          // [K / 64][x_rows][64] of MMA_DTYPE, as reorder.cu makes it
         const float* __restrict__ factor,  // [k segments][num_tokens]
         const u8* __restrict__ qdata, const u8* __restrict__ scale, const u8* __restrict__ zero,
         const Bias* __restrict__ bias, Out* __restrict__ out,
         float* __restrict__ workspace,  // 2 * num_ctas * kBlockN * BLOCK_M; partials.cuh says what for
         int* __restrict__ semaphores,   // [num_ctas or more], zero when the kernel begins and when it ends
         int out_features_plus_2, int num_tokens_plus_2, int x_rows, void*, void*) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 smem = (u32)__cvta_generic_to_shared(shared);
  u8* const partials = (u8*)workspace;
  const int out_features = out_features_plus_2 - 2, num_tokens = num_tokens_plus_2 - 2;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < X_STAGES; i++) {
      mbarrier_init(smem + kSmemFull + 8 * i, 1);
      mbarrier_init(smem + kSmemEmpty + 8 * i, kMmaWarps);
    }
    mbarrier_init(smem + kSmemPlanned, 1);
    mbarrier_init(smem + kSmemStarted, 1);
    mbarrier_init(smem + kSmemCleared, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  const TileScheduler scheduler(out_features, num_tokens);
  if (warp == kMmaWarps) {
    if (threadIdx.x == kMmaWarps * 32) produce_activations(scheduler, smem, x, x_rows);
  } else if (warp == kMmaWarps + 1) {
    plan_fixup(scheduler, smem, partials, semaphores);
  } else {
    consume(scheduler, smem, warp, factor, qdata, scale, zero, bias, out, partials, out_features, num_tokens);
  }
}
