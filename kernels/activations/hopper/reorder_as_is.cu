// Activations [M, K] in bf16, in the order and the place in which gemm.cu reads them:
// [K/64][rows][64], a row's eight pieces of 16 bytes swapped as shared memory has them. README.md says which
// column goes where. Defined from outside: NAME, K, GATE, UP_OFFSET, THREADS, SEMAPHORES; X is BFLOAT16.

#include "columns.cuh"

namespace {

static_assert(X == BFLOAT16, "as they are");
constexpr int kUnits = K / 128;
constexpr int kGroups = THREADS / 8;  // threads that put a unit of 128 columns in order together
// Registers are bounded so that blocks start beside the product in front; gates need more.
constexpr int kBlocks = GATE ? 8 : 2048 / THREADS;

}  // namespace

// Grid: rows, programs that share one.
extern "C" __global__ void __launch_bounds__(THREADS, kBlocks)
    NAME(SOURCES, u16* __restrict__ reordered, float* __restrict__ factor,  // ones
         int* __restrict__ semaphores,                                       // zeros
         STRIDES int tokens_and_two, int rows, void*, void*) {
  const int row = blockIdx.x, thread = threadIdx.x;
  launch_dependents();
  wait_for_previous();
  if (row == 0 && blockIdx.y == 0)
    for (int i = thread; i < SEMAPHORES / 4; i += THREADS) ((int4*)semaphores)[i] = make_int4(0, 0, 0, 0);
  if (row >= tokens_and_two - 2) return;
  if (blockIdx.y == 0 && thread == 0) factor[row] = 1.f;

  // A thread has four columns of each block of a unit, of half h, word c.
  const int unit = blockIdx.y * kGroups + thread / 8, h = thread % 8 / 4, c = thread % 4;
  if (unit >= kUnits) return;
  const auto from = ROWS(row);
  Four loaded[4][kSources], four[4];
#pragma unroll
  for (int t = 0; t < 4; t++) from.start(unit * 128 + h * 16 + c * 4 + t * 32, loaded[t]);
#pragma unroll
  for (int t = 0; t < 4; t++) four[t] = from.finish(loaded[t]);
  u16* to = reordered + ((u64)(unit * 2 + h) * rows + row) * 64;
#pragma unroll
  for (int o = 0; o < 2; o++) {
    u32 words[4];
#pragma unroll
    for (int t = 0; t < 4; t++)
      words[t] = __byte_perm(four[t].words[0], four[t].words[1], o ? 0x7632 : 0x5410);
    *(uint4*)(to + ((c * 2 + o) ^ (row % 8)) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}
