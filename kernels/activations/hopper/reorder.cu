// Reorders activations [M, K] as float16 for gemm.cu: [K / 64][reordered_rows][64], of a row's eight pieces
// of 16 bytes piece p at p ^ (row % 8). kernels/linear/README.md says which column goes where. The columns of
// a k segment, SEGMENT_STEPS times 256, are divided by a power of two, factor[segment][row]. The host defines
// NAME, K, X_DTYPE, GATE, UP_OFFSET, SEGMENT_STEPS, MAX_EXPONENT, THREADS, ITEMS and SEMAPHORES.

#include "columns.cuh"

namespace {

// An item is four columns of each of the four blocks of 32 in a unit of 128: those of word `word` of half
// `half` of the blocks' int4. It gives two pieces of 16 bytes.
constexpr int kItems = K / 16, kSegmentItems = SEGMENT_STEPS * 16;
static_assert(THREADS * ITEMS >= kSegmentItems, "a thread has ITEMS items at most");

constexpr u32 kWithoutSigns = sizeof(Bits) == 2 ? 0x7fff7fffu : 0x7fffffffu;

// The larger magnitude; of two numbers in a word each by itself. Magnitudes compare as their bits do, and NaN
// is larger than all numbers.
__device__ __forceinline__ u32 max_magnitude(u32 a, u32 b) {
  b &= kWithoutSigns;
  return sizeof(Bits) == 2 ? max_u16x2(a, b) : max(a, b);
}

// The exponent, as float32 has it, of the largest magnitude of all threads.
__device__ __forceinline__ int max_exponent_of_block(u32 largest, u32* warp_largest) {
  if (sizeof(Bits) == 2) largest = max(largest >> 16, largest & 0xffff);
  largest = __reduce_max_sync(0xffffffff, largest);
  if (threadIdx.x % 32 == 0) warp_largest[threadIdx.x / 32] = largest;
  __syncthreads();
  const u32 lane = threadIdx.x % 32;
  largest = __reduce_max_sync(0xffffffff, lane < THREADS / 32 ? warp_largest[lane] : 0);
  const int exponent = __float_as_int(Number<X_DTYPE>::load(kWords == 2 ? (Bits)largest : Bits())) >> 23;
  return min(max(kWords == 2 ? exponent : (int)(largest >> 23), 27), 240);
}

}  // namespace

// Grid: rows, k segments. A thread keeps its columns in registers until the largest magnitude of the segment
// is known. Divided, activations are below 2^(MAX_EXPONENT + 1); those of 8 significant bits are exact down
// to 2^-(MAX_EXPONENT + 17) of the largest.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    NAME(SOURCE_ARGUMENTS, u16* __restrict__ reordered, float* __restrict__ factor,
         int* __restrict__ semaphores,  // [SEMAPHORES], set to zero
         STRIDE_ARGUMENTS int num_tokens_plus_2, int reordered_rows, void*, void*) {
  extern __shared__ __align__(16) u8 shared[];
  const int row = blockIdx.x, thread = threadIdx.x;
  launch_dependents();
  wait_for_previous_grid();
  if (row == 0 && blockIdx.y == 0)
    for (int i = thread; i < SEMAPHORES / 4; i += THREADS) ((int4*)semaphores)[i] = make_int4(0, 0, 0, 0);
  if (row >= num_tokens_plus_2 - 2) return;

  FourColumns loaded[ITEMS][4][kSources], columns[ITEMS][4];
  u32 largest = 0;
  const auto source = SOURCE_ROW(row);
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    // A thread that has fewer items loads the last one again.
    const int item =
        min(min(thread + i * THREADS, kSegmentItems - 1) + (int)blockIdx.y * kSegmentItems, kItems - 1);
#pragma unroll
    for (int block = 0; block < 4; block++)
      source.load(item / 8 * 128 + item % 8 * 4 + block * 32, loaded[i][block]);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int block = 0; block < 4; block++) {
      columns[i][block] = source.value(loaded[i][block]);
#pragma unroll
      for (int j = 0; j < kWords; j++) largest = max_magnitude(largest, columns[i][block].words[j]);
    }
  const int exponent = max_exponent_of_block(largest, (u32*)shared);
  if (thread == 0)
    factor[(u64)blockIdx.y * (num_tokens_plus_2 - 2) + row] = __int_as_float((exponent - MAX_EXPONENT) << 23);
  const float inverse = __int_as_float((254 + MAX_EXPONENT - exponent) << 23);

#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int segment_item = thread + i * THREADS, item = segment_item + (int)blockIdx.y * kSegmentItems;
    const int half = item % 8 / 4, word = item % 4;
    if (segment_item >= kSegmentItems || item >= kItems) continue;
    u16* to = reordered + ((u64)(item / 8 * 2 + half) * reordered_rows + row) * 64;
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
      u32 words[4];
#pragma unroll
      for (int block = 0; block < 4; block++)
        words[block] = pack_f16x2(columns[i][block][odd] * inverse, columns[i][block][odd + 2] * inverse);
      *(uint4*)(to + ((word * 2 + odd) ^ (row % 8)) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}
