// What the kernels use of CUDA C++, for a host compiler. Included before a kernel's source.

#pragma once

#include <cmath>
#include <cstring>

#include "threads.h"

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

template <typename To, typename From>
inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float value) {
  return bits_of<int>(value);
}
inline unsigned __float_as_uint(float value) {
  return bits_of<unsigned>(value);
}
inline float __int_as_float(int value) {
  return bits_of<float>(value);
}
inline float __uint_as_float(unsigned value) {
  return bits_of<float>(value);
}
using std::max;
using std::min;
inline unsigned max(unsigned a, int b) {
  return max(a, (unsigned)b);
}

extern unsigned char shared[];

namespace emulator {

constexpr int kMaxThreads = 1024;
constexpr int kSharedBytes = 227 << 10;

// A word of each thread, which others of its warp can read, and the points at which the threads of a warp and
// of the block wait for each other.
extern unsigned words[kMaxThreads];
extern SyncPoint warps[kMaxThreads / 32], all;
extern int num_threads;

inline int lane() {
  return threadIdx.x % 32;
}
inline void sync_warp() {
  block.sync(warps[threadIdx.x / 32], std::min(32, num_threads - (int)threadIdx.x / 32 * 32));
}

// Each lane writes a word; `pick` reads the words of all lanes, and its result is returned.
template <typename Pick>
inline unsigned exchange(unsigned word, Pick pick) {
  words[threadIdx.x] = word;
  sync_warp();
  const unsigned found = pick(words + threadIdx.x / 32 * 32);
  sync_warp();
  return found;
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::block.sync(emulator::all, emulator::num_threads);
}
inline void __syncwarp() {
  emulator::sync_warp();
}
inline int __shfl_sync(unsigned, int value, int from) {
  return (int)emulator::exchange(value, [from](const unsigned* lanes) { return lanes[from]; });
}
inline unsigned __shfl_xor_sync(unsigned, unsigned value, int other) {
  const int from = emulator::lane() ^ other;
  return emulator::exchange(value, [from](const unsigned* lanes) { return lanes[from]; });
}
inline int __any_sync(unsigned, int value) {
  return emulator::exchange(value != 0,
                            [](const unsigned* lanes) { return *std::max_element(lanes, lanes + 32); });
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return emulator::exchange(value,
                            [](const unsigned* lanes) { return *std::max_element(lanes, lanes + 32); });
}
inline int __ffs(int word) {
  return __builtin_ffs(word);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> (select >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline uint64_t __cvta_generic_to_shared(const void* at) {
  return (const unsigned char*)at - shared;
}
