// Activations x [M, K] in fp16, in the order and the place in which warpgroup.cu reads them:
// [K/64][rows][64], a row's eight pieces of 16 bytes swapped as shared memory has them. README.md says which
// column goes where. Row m is divided by factor[m], a power of two. Defined from outside: NAME, K, X, ROUND,
// THREADS, STAGED, TICKETS.

#include "ptx.cuh"

namespace {

constexpr int kUnits = K / 128;
constexpr int kGroups = THREADS / 8;  // threads that put a unit of 128 columns in order together
constexpr float kMagic = 12582912.f;  // added to a small number, it leaves the number rounded to an integer
constexpr float kTiny = 7.52316385e-37f;  // 2^-120: below, 127 / amax would overflow; such a block is zero

typedef Number<X>::Bits Bits;
constexpr int kWords = sizeof(Bits);  // of four columns, in which they come
constexpr u32 kNoSign = sizeof(Bits) == 2 ? 0x7fff7fffu : 0x7fffffffu;

// Shared memory: what each warp found, a barrier, and the row, if it is copied.
constexpr int kBarrierAt = THREADS / 8;
constexpr int kRowAt = kBarrierAt + 16;
constexpr int kRowBytes = K * (int)sizeof(Bits);
static_assert(kRowAt + (STAGED ? kRowBytes : 0) == SHARED_BYTES, "the host computes the same");

// Four columns.
struct Four {
  u32 words[kWords];

  __device__ __forceinline__ explicit Four(const u8* from) {
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

// Of the greatest magnitude of a row the exponent alone, as float32 has it: activations are below 2^14 in
// fp16, exact down to 2^-24 of the greatest.
__device__ __forceinline__ int exponent_of(u32 most, u32* found) {
  if (sizeof(Bits) == 2) most = max(most >> 16, most & 0xffff);
  most = __reduce_max_sync(0xffffffff, most);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) most = max(most, found[i]);
  const int exponent = __float_as_int(Number<X>::load(kWords == 2 ? (Bits)most : Bits())) >> 23;
  return min(max(kWords == 2 ? exponent : (int)(most >> 23), 27), 240);
}

// Rounded to eight bits per block, of which seven lanes beside this one have the rest.
__device__ __forceinline__ void round(float (&values)[4]) {
  float amax = 0.f;
#pragma unroll
  for (int i = 0; i < 4; i++) amax = fmaxf(amax, fabsf(values[i]));
#pragma unroll
  for (int lane = 1; lane < 8; lane *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, lane));
  const bool small = amax < kTiny;
  const float inverse = small ? 0.f : divided(127.f, amax), step = small ? 0.f : amax * (1.f / 127.f);
  // The differences are NaN where the value is.
#pragma unroll
  for (int i = 0; i < 4; i++) values[i] = (fmaf(values[i], inverse, kMagic) - kMagic) * step;
}

}  // namespace

// Grid: rows, programs that share one; each looks at all of it for the greatest. So few registers that it
// fits beside the product in front, and beside the one behind it.
extern "C" __global__ void __launch_bounds__(THREADS, 2048 / THREADS)
    NAME(const Bits* __restrict__ x, u16* __restrict__ ordered, float* __restrict__ factor,
         int* __restrict__ tickets,  // zeros
         int tokens_and_two, int rows, void*, void*) {
  extern __shared__ __align__(16) u8 shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int row = blockIdx.x, thread = threadIdx.x;
  let_next_start();
  if (STAGED) {
    if (thread == 0) {
      barrier_init(base + kBarrierAt, 1);
      barrier_init_fence();
    }
    __syncthreads();
  }
  wait_for_previous();
  const bool some = row < tokens_and_two - 2;
  const u8* from = (const u8*)x + (u64)row * kRowBytes;
  if (STAGED && thread == 0 && some) {
    barrier_expect(base + kBarrierAt, kRowBytes);
    copy_bulk(base + kRowAt, from, kRowBytes, base + kBarrierAt);
  }
  if (row == 0 && blockIdx.y == 0)
    for (int i = thread; i < TICKETS / 4; i += THREADS) ((int4*)tickets)[i] = make_int4(0, 0, 0, 0);
  if (!some) return;
  if (STAGED) {
    barrier_wait(base + kBarrierAt, 0);
    from = shared + kRowAt;
  }

  u32 most = 0;
#pragma unroll 4
  for (int i = thread; i < kRowBytes / 16; i += THREADS) {
    const uint4 piece = ((const uint4*)from)[i];
    most = greatest(greatest(greatest(greatest(most, piece.x), piece.y), piece.z), piece.w);
  }
  const int exponent = exponent_of(most, (u32*)shared);
  if (blockIdx.y == 0 && thread == 0) factor[row] = __int_as_float((exponent - 13) << 23);
  const float down = __int_as_float((254 + 13 - exponent) << 23);

  // A thread has four columns of each block of a unit, of half h, word c.
  const int group = thread / 8, h = thread % 8 / 4, c = thread % 4;
  const int share = (kUnits + gridDim.y - 1) / gridDim.y;
  const int first = blockIdx.y * share, last = min(first + share, kUnits);
  for (int unit = first + group; unit - group < last; unit += kGroups) {
    // All lanes round; those beyond the end what others have.
    const u8* mine = from + (min(unit, kUnits - 1) * 128 + h * 16 + c * 4) * (int)sizeof(Bits);
    u32 words[2][4];
#pragma unroll
    for (int t = 0; t < 4; t++) {
      const Four four(mine + t * 32 * sizeof(Bits));
      float values[4] = {four[0], four[1], four[2], four[3]};
      if (ROUND) round(values);
      words[0][t] = pair_of(values[0] * down, values[2] * down);
      words[1][t] = pair_of(values[1] * down, values[3] * down);
    }
    if (unit < last) {
      u16* to = ordered + ((u64)(unit * 2 + h) * rows + row) * 64;
#pragma unroll
      for (int o = 0; o < 2; o++)
        *(uint4*)(to + ((c * 2 + o) ^ (row % 8)) * 8) =
            make_uint4(words[o][0], words[o][1], words[o][2], words[o][3]);
    }
  }
}
