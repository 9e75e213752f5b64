// out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n], for int4 weights in groups of 32 with float16
// scales, on the tensor cores of Hopper. README.md says how it works. Defined from outside: NAME, K, BLOCK_M,
// WARPGROUPS, STAGES, X_STAGES, OFFSET, HAS_BIAS, OUT, BIAS; and in products.cuh the product itself, whose
// text depends on BLOCK_M.

#include "products.cuh"
#include "warpgroup_copies.cuh"
#include "warpgroup_results.cuh"
#include "warpgroup_weights.cuh"

namespace {

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
