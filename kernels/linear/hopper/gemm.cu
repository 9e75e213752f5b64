// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n], for int4 weights in groups of 32 with float16
// scales, on the tensor cores of Hopper. README.md says how it works. Defined from outside: NAME, K, BLOCK_M,
// WARPGROUPS, STAGES, X_STAGES, TYPE, HALF_SUMS, RUN, OFFSET, HAS_BIAS, OUT, BIAS; and in products.cuh the
// product itself, whose text depends on BLOCK_M, TYPE and HALF_SUMS.

#include "products.cuh"
#include "producer.cuh"
#include "epilogue.cuh"
#include "dequantize.cuh"

namespace {

// Whether copies are started behind the first products of a step, while these are computed, and not in front.
// With many sums in float32 there are no registers for it.
constexpr bool kBringLate = HALF_SUMS || BLOCK_M <= 64;

// Warps that multiply: 16 rows of a tile each, four warps a product.
__device__ __forceinline__ void consume(const Work& work, u32 base, int warp, const float* factor,
                                        const u8* qdata, const u8* scale, const u8* zero, const Bias* bias,
                                        Out* out, u8* partial, int num_rows, int num_tokens) {
  const int lane = threadIdx.x % 32;
  const u32 warp_at = base + kWAt + warp * 512, thread_at = warp_at + lane * 16;
  const u32 s_to = base + kSAt + (warp * 16 + lane / kUnit) * kSRow;
  const u32 z_to = base + kZAt + (warp * 16 + lane / kUnit) * kZRow;

  Ahead ahead(work);
  u32 ahead_at = 0;
  const auto bring_more = [&] {
    if (ahead.next(work, warp, num_rows)) ahead.copy(qdata, scale, zero, thread_at + ahead_at, s_to, z_to);
    commit_copies();
    ahead_at = ahead_at == (STAGES - 1) * kWBytes ? 0 : ahead_at + kWBytes;
  };
  // Weights are not written by the kernel in front; all else waits for its end.
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) bring_more();
  wait_for_previous();

  Part part = work.start();
  u32 stage_at = 0, read_at = 0;
  // These go on from step to step: places computed anew each time take more instructions.
  u32 s_at = s_to + lane % 4 * 2, z_at = z_to + lane % 4 * (kZero / 8);
  int scale_stage = 0;
  Turn<kXTurns> turn{0, 0};
  const u32 factor_at = base + kFactorAt + warp * kFactorBytes;
  const u64 first_x = describe_rows_of_128(base + kXAt);
  while (work.next(part)) {
    RowFactors factors;
    float numbers[BLOCK_M / 2];
    const int first_m = work.first_m(part);
    int run_from = part.first, run_to = 0;
    do {
      run_to = min(part.last, (run_from / kRun + 1) * kRun);
      const TokenFactors of_tokens{factor_at, factor + (u64)(run_from / kRun) * num_tokens + first_m,
                                   num_tokens - first_m};
      if (HALF_SUMS) of_tokens.bring();
      Sum sums[kSums];
#pragma unroll
      for (int j = 0; j < kSums; j++) sums[j] = 0;
#pragma unroll 1
      for (int left = run_to - run_from; left > 0; left--) {
        wait_for_copies<STAGES - 2>();
        __syncwarp();
        if (!kBringLate) bring_more();
        u32 scales[2] = {0, 0};
        if (HALF_SUMS) {
#pragma unroll
          for (int half = 0; half < 2; half++)
            scales[half] = load2(s_at + half * 8) | load2(s_at + half * 8 + 8 * kSRow) << 16;
          u32 sizes = greater_halves(without_signs(scales[0]), without_signs(scales[1]));
          if (OFFSET == MINIMUM) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
              const u32 z = z_at + half * (kZero / 2);
              const u32 minimum = mul2(load2(z) | load2(z + 8 * kZRow) << 16, 0x2c002c00u);
              sizes = greater_halves(sizes, without_signs(minimum));
            }
          }
          factors.admit(sizes, sums);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {  // 128 columns: lane t of four has block t of rows r and r + 8
          u32 upper_words[4], lower_words[4];
          load16(upper_words, thread_at + stage_at + half * (kWBytes / 4));
          load16(lower_words, thread_at + stage_at + kWBytes / 2 + half * (kWBytes / 4));
          const u32 x_stage = turn.stage * kXTogether + half % kXTogether;
          // Only the low word differs.
          const u64 x = first_x >> 32 << 32 | (u32)((u32)first_x + x_stage * (kXBytes / 16));
          const u32 s = s_at + half * 8, z = z_at + half * (kZero / 2);
          u32 zeros[2] = {0, 0};
          if (OFFSET == ZERO_POINT) {
            zeros[0] = load1(z);
            zeros[1] = load1(z + 8 * kZRow);
          } else if (OFFSET == MINIMUM) {
            zeros[0] = load2(z);
            zeros[1] = load2(z + 8 * kZRow);
          }
          const auto blocks = [&] {
            if constexpr (HALF_SUMS)
              return HalfBlocks(scales[half], zeros[0] | zeros[1] << 16, factors);
            else
              return Blocks<TYPE>(load2(s), load2(s + 8 * kSRow), zeros[0], zeros[1]);
          }();
#pragma unroll
          for (int pair = 0; pair < 2; pair++) {
            u32 a[4][4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
              const int word = pair * 2 + j;
              blocks.template weights<0>(upper_words[word], a[2 * j][0], a[2 * j][2], a[2 * j + 1][0],
                                         a[2 * j + 1][2]);
              blocks.template weights<1>(lower_words[word], a[2 * j][1], a[2 * j][3], a[2 * j + 1][1],
                                         a[2 * j + 1][3]);
            }
            if (pair == 0) barrier_wait(base + kFullAt + 8 * x_stage, turn.parity);
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
          if (kBringLate && half == 0) bring_more();
          products_wait();
          if (lane == 0) barrier_arrive(base + kEmptyAt + 8 * x_stage);
          if (half % kXTogether == kXTogether - 1) turn.go_on();
        }
        read_at = stage_at;
        stage_at = stage_at == (STAGES - 1) * kWBytes ? 0 : stage_at + kWBytes;
        const bool around = scale_stage == kScaleStages - 1;
        s_at += around ? 16 - kSRow : 16;
        z_at += around ? kZero - kZRow : kZero;
        scale_stage = around ? 0 : scale_stage + 1;
      }
      as_floats(sums, factors, of_tokens, numbers);
      if (kRun < kSteps) {
        if (run_from > part.first) add_aside(numbers, aside(partial, work, warp));
        if (run_to < part.last) put_aside(numbers, aside(partial, work, warp));
      }
      run_from = run_to;
    } while (kRun < kSteps && run_from < part.last);
    const Place to{out, bias, factor, warp_at + read_at, num_rows, num_tokens};  // in what was read last
    if (part.last - part.first == kSteps) {
      store<BLOCK_M>(numbers, to, work.first_n(part) + warp * 16, first_m);
      continue;
    }
    barrier_wait(base + kClearAt, 0);
    store_part(numbers, part_of(partial, part.slot, warp));
    if (part.unit < work.end) continue;  // who has another tile to go on with waits for nobody
    barrier_wait(base + kReadyAt, 0);
    u32 chunks = __shfl_sync(0xffffffff, load4(base + kOwnAt), 0);
#pragma unroll 1
    while (chunks != 0) {
      const int i = __ffs(chunks) - 1;
      const Task task = load_task(base, i / kChunks);
      // Two take as long as one, if all their parts can be read at once.
      if (kChunks > 1 && task.count <= kAtOnce / 2 && i % kChunks + 1 < kChunks && chunks >> i & 2) {
        chunks &= ~(3u << i);
        sum_and_store<2>(task, i % kChunks, partial, warp, to);
      } else {
        chunks &= ~(1u << i);
        sum_and_store<1>(task, i % kChunks, partial, warp, to);
      }
    }
  }
}

// As if a block had more threads, so that each takes 80 registers at most, or 128, where that is enough: more
// of the order's programs start beside this kernel's then.
constexpr bool kFewSums = HALF_SUMS || BLOCK_M <= 32;
constexpr int kBoundThreads = kFewSums && WARPGROUPS == 4                     ? 768
                              : kFewSums && WARPGROUPS == 2 && BLOCK_M == 128 ? 512
                                                                              : kThreads;

}  // namespace

// A program per block; each of its warpgroups multiplies 64 rows of a tile.
extern "C" __global__ void __launch_bounds__(kBoundThreads, 1)
    NAME(const u8* __restrict__ x,          // [K / 64][rows_of_x][64] of TYPE, as reorder.cu makes it
         const float* __restrict__ factor,  // [num_tokens], of each run
         const u8* __restrict__ qdata, const u8* __restrict__ scale, const u8* __restrict__ zero,
         const Bias* __restrict__ bias, Out* __restrict__ out,
         float* __restrict__ partial,  // [2 * programs][BLOCK_N / 16][BLOCK_M / 16][32][8], or half of it
         int* __restrict__ semaphores,    // zero before and after
         int rows_and_two, int tokens_and_two, int rows_of_x, void*, void*) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int num_rows = rows_and_two - 2, num_tokens = tokens_and_two - 2;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < X_STAGES; i++) {
      barrier_init(base + kFullAt + 8 * i, 1);
      barrier_init(base + kEmptyAt + 8 * i, kWarps);
    }
    barrier_init(base + kReadyAt, 1);
    barrier_init(base + kStartedAt, 1);
    barrier_init(base + kClearAt, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const Work work(num_rows, num_tokens);
  if (warp == kWarps) {
    if (threadIdx.x == kWarps * 32) produce(work, base, x, rows_of_x);
  } else if (warp == kWarps + 1) {
    if (work.begin < work.end) {
      wait_for_previous();
      barrier_wait(base + kStartedAt, 0);  // the first activations are waited for, and come first
      meet(work, base, (u8*)partial, kWarps * kPartBytes, kMissing, semaphores);
    }
  } else {
    consume(work, base, warp, factor, qdata, scale, zero, bias, out, (u8*)partial, num_rows, num_tokens);
  }
}
