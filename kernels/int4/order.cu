// Activations x [M, K] in fp16, in the order and the place in which warpgroup.cu reads them:
// [K/64][rows][64], a row's eight pieces of 16 bytes swapped as shared memory has them. README.md says which
// column goes where. Row m is divided by factor[m], a power of two. Defined from outside: NAME, K, X, ROUND,
// THREADS, TICKETS.

#include "ptx.cuh"

namespace {

constexpr int kUnits = K / 128;
constexpr int kGroups = THREADS / 8;  // threads that put a unit of 128 columns in order together
constexpr float kMagic = 12582912.f;  // added to a small number, it leaves the number rounded to an integer
constexpr float kTiny = 7.52316385e-37f;  // 2^-120: below, 127 / amax would overflow; such a block is zero

typedef Number<X>::Bits Bits;
constexpr int kWords = sizeof(Bits);  // of four columns, in which they come
constexpr u32 kNoSign = sizeof(Bits) == 2 ? 0x7fff7fffu : 0x7fffffffu;

struct Four {
  u32 words[kWords];

  __device__ __forceinline__ void load(const Bits* from) {
    if (kWords == 2) {
      const uint2 two = *(const uint2*)from;
      words[0] = two.x, words[1] = two.y;
    } else {
      const uint4 four = *(const uint4*)from;
      words[0] = four.x, words[1] = four.y, words[kWords - 2] = four.z, words[kWords - 1] = four.w;
    }
  }
  __device__ __forceinline__ float operator[](int i) const {
    if (kWords == 4) return __uint_as_float(words[i]);
    return Number<X>::load((Bits)(words[i / 2] >> (i % 2 * 16)));
  }
};

// Magnitudes order as their bits do, NaN last; of two in a word each by itself.
__device__ __forceinline__ u32 greatest(u32 a, u32 b) {
  b &= kNoSign;
  return sizeof(Bits) == 2 ? greater_halves(a, b) : max(a, b);
}

__device__ __forceinline__ u32 greatest(u32 a, const uint4& b) {
  return greatest(greatest(greatest(greatest(a, b.x), b.y), b.z), b.w);
}

// Of the greatest magnitude of a row the exponent alone, as float32 has it: activations are below 2^14 in
// fp16, exact down to 2^-24 of the greatest.
__device__ __forceinline__ int exponent_of(u32 most, u8* shared) {
  u32* found = (u32*)shared;  // by each warp
  if (sizeof(Bits) == 2) most = max(most >> 16, most & 0xffff);
  most = __reduce_max_sync(0xffffffff, most);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) most = max(most, found[i]);
  const int exponent = __float_as_int(Number<X>::load(kWords == 2 ? (Bits)most : Bits())) >> 23;
  return min(max(kWords == 2 ? exponent : (int)(most >> 23), 27), 240);
}

// A thread's columns, rounded to eight bits per block, of which seven lanes beside it have the rest.
__device__ __forceinline__ void round(float (&values)[4][4], const Four (&four)[4], bool any) {
#pragma unroll
  for (int t = 0; t < 4; t++) {
    float amax = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      values[t][i] = any ? four[t][i] : 0.f;
      amax = fmaxf(amax, fabsf(values[t][i]));
    }
    if (ROUND) {
#pragma unroll
      for (int lane = 1; lane < 8; lane *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, lane));
      const bool small = amax < kTiny;
      const float inverse = small ? 0.f : divided(127.f, amax), step = small ? 0.f : amax * (1.f / 127.f);
      // The differences are NaN where the value is.
#pragma unroll
      for (int i = 0; i < 4; i++) values[t][i] = (fmaf(values[t][i], inverse, kMagic) - kMagic) * step;
    }
  }
}

}  // namespace

// Grid: rows, programs that share one; each looks at all of it for the greatest.
extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    NAME(const Bits* __restrict__ x, u16* __restrict__ ordered, float* __restrict__ factor,
         int* __restrict__ tickets,  // zeros
         int tokens_and_two, int rows, void*, void*) {
  extern __shared__ __align__(16) u8 shared[];
  static_assert(THREADS / 8 == SHARED_BYTES, "the host computes the same");
  const int row = blockIdx.x, thread = threadIdx.x;
  let_next_start();
  wait_for_previous();
  if (row == 0 && blockIdx.y == 0)
    for (int i = thread; i < TICKETS / 4; i += THREADS) ((int4*)tickets)[i] = make_int4(0, 0, 0, 0);
  if (row >= tokens_and_two - 2) return;
  const Bits* from = x + (u64)row * K;

  // A thread has four columns of each block of a unit, of half h, word c.
  const int group = thread / 8, h = thread % 8 / 4, c = thread % 4;
  const int share = (kUnits + gridDim.y - 1) / gridDim.y;
  const int last = min((int)(blockIdx.y + 1) * share, kUnits);
  int unit = blockIdx.y * share + group;
  Four four[4];
  const Bits* mine = from + h * 16 + c * 4;
  if (unit < last) {
#pragma unroll
    for (int t = 0; t < 4; t++) four[t].load(mine + unit * 128 + t * 32);
  }

  constexpr int kPieces = K * sizeof(Bits) / 16;
  constexpr int kFirst = kPieces < 4 * THREADS ? (kPieces + THREADS - 1) / THREADS : 4;
  uint4 pieces[kFirst];
#pragma unroll
  for (int i = 0; i < kFirst; i++)
    pieces[i] =
        i * THREADS + thread < kPieces ? ((const uint4*)from)[i * THREADS + thread] : make_uint4(0, 0, 0, 0);

  // What a thread rounds does not depend on the row's greatest: the first is done while the row is on its
  // way.
  float values[4][4];
  round(values, four, unit < last);

  u32 most = 0;
#pragma unroll
  for (int i = 0; i < kFirst; i++) most = greatest(most, pieces[i]);
#pragma unroll 4
  for (int i = kFirst * THREADS + thread; i < kPieces; i += THREADS)
    most = greatest(most, ((const uint4*)from)[i]);
  const int exponent = exponent_of(most, shared);
  if (blockIdx.y == 0 && thread == 0) factor[row] = __int_as_float((exponent - 13) << 23);
  const float down = __int_as_float((254 + 13 - exponent) << 23);

  for (; unit - group < last; unit += kGroups) {
    if (unit < last) {
      u16* to = ordered + ((u64)(unit * 2 + h) * rows + row) * 64;
#pragma unroll
      for (int o = 0; o < 2; o++) {
        u32 words[4];
#pragma unroll
        for (int t = 0; t < 4; t++) words[t] = pair_of(values[t][o] * down, values[t][2 + o] * down);
        *(uint4*)(to + ((c * 2 + o) ^ (row % 8)) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    const int next = unit + kGroups;
    if (next < last) {
#pragma unroll
      for (int t = 0; t < 4; t++) four[t].load(mine + next * 128 + t * 32);
    }
    round(values, four, next < last);
  }
}
