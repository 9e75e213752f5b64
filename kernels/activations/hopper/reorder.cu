// Activations [M, K] in fp16, in the order and the place in which gemm.cu reads them:
// [K/64][rows][64], a row's eight pieces of 16 bytes swapped as shared memory has them. README.md says which
// column goes where. Each RUN times 256 columns of row m are divided by a power of two, factor[run][m].
// Defined from outside: NAME, K, X, GATE, UP_OFFSET, RUN, TOP, THREADS, ITEMS, SEMAPHORES.

#include "columns.cuh"

namespace {

constexpr int kItems = K / 16, kItemsOfRun = RUN * 16;

constexpr u32 kNoSign = sizeof(Bits) == 2 ? 0x7fff7fffu : 0x7fffffffu;
static_assert(THREADS * ITEMS >= kItemsOfRun, "each thread has ITEMS at most");

// Magnitudes order as their bits do, NaN last; of two in a word each by itself.
__device__ __forceinline__ u32 greatest(u32 a, u32 b) {
  b &= kNoSign;
  return sizeof(Bits) == 2 ? greater_halves(a, b) : max(a, b);
}

// Of the greatest magnitude the exponent alone, as float32 has it.
__device__ __forceinline__ int exponent_of(u32 most, u32* found) {
  if (sizeof(Bits) == 2) most = max(most >> 16, most & 0xffff);
  most = __reduce_max_sync(0xffffffff, most);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
  __syncthreads();
  const u32 lane = threadIdx.x % 32;
  most = __reduce_max_sync(0xffffffff, lane < THREADS / 32 ? found[lane] : 0);
  const int exponent = __float_as_int(Number<X>::load(kWords == 2 ? (Bits)most : Bits())) >> 23;
  return min(max(kWords == 2 ? exponent : (int)(most >> 23), 27), 240);
}

}  // namespace

// Grid: rows, runs of one. What a thread has stays in registers until the greatest of the run is known: below
// 2^(TOP + 1), activations of 8 bits are exact down to 2^-(TOP + 17) of it.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    NAME(SOURCES, u16* __restrict__ reordered, float* __restrict__ factor, int* __restrict__ semaphores,  // zeros
         STRIDES int tokens_and_two, int rows, void*, void*) {
  extern __shared__ __align__(16) u8 shared[];
  const int row = blockIdx.x, thread = threadIdx.x;
  launch_dependents();
  wait_for_previous();
  if (row == 0 && blockIdx.y == 0)
    for (int i = thread; i < SEMAPHORES / 4; i += THREADS) ((int4*)semaphores)[i] = make_int4(0, 0, 0, 0);
  if (row >= tokens_and_two - 2) return;

  // An item is four columns of each block of a unit of 128, of half h, word c.
  Four loaded[ITEMS][4][kSources], four[ITEMS][4];
  u32 most = 0;
  const auto from = ROWS(row);
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int item =
        min(min(thread + i * THREADS, kItemsOfRun - 1) + (int)blockIdx.y * kItemsOfRun, kItems - 1);
#pragma unroll
    for (int t = 0; t < 4; t++) from.start(item / 8 * 128 + item % 8 * 4 + t * 32, loaded[i][t]);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int t = 0; t < 4; t++) {
      four[i][t] = from.finish(loaded[i][t]);
#pragma unroll
      for (int j = 0; j < kWords; j++) most = greatest(most, four[i][t].words[j]);
    }
  const int exponent = exponent_of(most, (u32*)shared);
  if (thread == 0)
    factor[(u64)blockIdx.y * (tokens_and_two - 2) + row] = __int_as_float((exponent - TOP) << 23);
  const float down = __int_as_float((254 + TOP - exponent) << 23);

#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int of_run = thread + i * THREADS, item = of_run + (int)blockIdx.y * kItemsOfRun;
    const int h = item % 8 / 4, c = item % 4;
    if (of_run >= kItemsOfRun || item >= kItems) continue;
    u16* to = reordered + ((u64)(item / 8 * 2 + h) * rows + row) * 64;
#pragma unroll
    for (int o = 0; o < 2; o++) {
      u32 words[4];
#pragma unroll
      for (int t = 0; t < 4; t++) words[t] = pair_of(four[i][t][o] * down, four[i][t][o + 2] * down);
      *(uint4*)(to + ((c * 2 + o) ^ (row % 8)) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}
