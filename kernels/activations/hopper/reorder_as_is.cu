// Reorders activations [M, K] in bfloat16 for gemm.cu, as they are: [K / 64][reordered_rows][64], of a row's
// eight pieces of 16 bytes piece p at p ^ (row % 8). kernels/linear/README.md says which column goes where.
// The host defines NAME, K, X_DTYPE, which is BFLOAT16, GATE, UP_OFFSET, THREADS and SEMAPHORES.

#include "columns.cuh"

namespace {

static_assert(X_DTYPE == BFLOAT16, "this kernel moves bfloat16");
constexpr int kUnits = K / 128;
constexpr int kBlockUnits = THREADS / 8;  // eight threads reorder a unit of 128 columns
// Blocks for which __launch_bounds__ keeps registers free, so that they start beside the product in front.
// Gates need more registers.
constexpr int kBlocks = GATE ? 8 : 2048 / THREADS;

}  // namespace

// Grid: rows, CTAs that share a row.
extern "C" __global__ void __launch_bounds__(THREADS, kBlocks)
    NAME(SOURCE_ARGUMENTS, u16* __restrict__ reordered, float* __restrict__ factor,  // [num_tokens], set to 1
         int* __restrict__ semaphores,  // [SEMAPHORES], set to zero
         STRIDE_ARGUMENTS int num_tokens_plus_2, int reordered_rows, void*, void*) {
  const int row = blockIdx.x, thread = threadIdx.x;
  launch_dependents();
  wait_for_previous_grid();
  if (row == 0 && blockIdx.y == 0)
    for (int i = thread; i < SEMAPHORES / 4; i += THREADS) ((int4*)semaphores)[i] = make_int4(0, 0, 0, 0);
  if (row >= num_tokens_plus_2 - 2) return;
  if (blockIdx.y == 0 && thread == 0) factor[row] = 1.f;

  // A thread has four columns of each of the four blocks of 32 in a unit: those of word `word` of half `half`
  // of the blocks' int4.
  const int unit = blockIdx.y * kBlockUnits + thread / 8;
  const int half = thread % 8 / 4, word = thread % 4;
  if (unit >= kUnits) return;
  const auto source = SOURCE_ROW(row);
  FourColumns loaded[4][kSources], columns[4];
#pragma unroll
  for (int block = 0; block < 4; block++)
    source.load(unit * 128 + half * 16 + word * 4 + block * 32, loaded[block]);
#pragma unroll
  for (int block = 0; block < 4; block++) columns[block] = source.value(loaded[block]);
  u16* to = reordered + ((u64)(unit * 2 + half) * reordered_rows + row) * 64;
#pragma unroll
  for (int odd = 0; odd < 2; odd++) {
    u32 words[4];
#pragma unroll
    for (int block = 0; block < 4; block++)
      words[block] = __byte_perm(columns[block].words[0], columns[block].words[1], odd ? 0x7632 : 0x5410);
    *(uint4*)(to + ((word * 2 + odd) ^ (row % 8)) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}
