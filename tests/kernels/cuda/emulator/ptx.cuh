// kernels/cuda/ptx.cuh, emulated. A copy happens as late as it may, or at any moment before. A wgmma is
// computed when it is issued, but the registers of its sums are NaN until the thread waits.

#pragma once

#include <unistd.h>

#include <deque>
#include <map>

#include "cuda.h"
#include "half.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace emulator {

struct Copy {
  u32 to, bytes;
  const void* from;
  bool done = false;
  void make() {
    if (!done) std::memcpy(shared + to, from, bytes);
    done = true;
  }
};
// A thread's copies: those of each group, the last one being gathered.
struct Copies {
  std::deque<std::vector<Copy>> groups{1};
};
extern Copies copies[kMaxThreads];

struct Barrier {
  int count = 0, missing = 0, bytes = 0;
  u32 phase = 0;
  void settle() {
    if (missing == 0 && bytes == 0) {
      phase++;
      missing = count;
    }
  }
};
struct Bulk {
  Copy copy;
  u32 barrier;
};
extern std::map<u32, Barrier> barriers;
extern std::vector<Bulk> bulks;

inline Barrier& barrier_at(u32 at) {
  const auto found = barriers.find(at);
  if (found == barriers.end()) fail("expected a barrier that was made, got another address");
  return found->second;
}
inline void check_shared(u32 at, u32 bytes) {
  if (at % bytes != 0)
    fail("expected an address in shared memory that is a multiple of what is read or written");
  if (at + bytes > SHARED_BYTES) fail("expected an address within the shared memory that was asked for");
}
inline void start_copy(u32 to, const void* from, u32 bytes) {
  check_shared(to, bytes);
  if ((uintptr_t)from % bytes != 0)
    fail("expected an address of memory that is a multiple of what is copied");
  copies[threadIdx.x].groups.back().push_back({to, bytes, from});
}

}  // namespace emulator

inline void cp_async16(u32 to, const void* from) {
  emulator::start_copy(to, from, 16);
}
inline void cp_async8(u32 to, const void* from) {
  emulator::start_copy(to, from, 8);
}
inline void cp_async_commit() {
  emulator::copies[threadIdx.x].groups.emplace_back();
}
template <int Newest>
inline void cp_async_wait() {
  auto& groups = emulator::copies[threadIdx.x].groups;
  while (groups.size() > Newest + 1) {
    for (auto& copy : groups.front()) copy.make();
    groups.pop_front();
  }
}

inline void mbarrier_init(u32 barrier, u32 count) {
  emulator::check_shared(barrier, 8);
  emulator::barriers[barrier] = {(int)count, (int)count, 0, 0};
}
inline void mbarrier_init_fence() {}
inline void fence_proxy_async() {}
inline void mbarrier_arrive(u32 barrier) {
  auto& at = emulator::barrier_at(barrier);
  if (at.missing == 0) emulator::fail("expected no more arrivals than the barrier waits for");
  at.missing--;
  at.settle();
}
inline void mbarrier_arrive_expect_tx(u32 barrier, u32 bytes) {
  emulator::barrier_at(barrier).bytes += bytes;
  mbarrier_arrive(barrier);
}
inline void mbarrier_wait(u32 barrier, u32 parity) {
  emulator::block.until([&] { return (emulator::barrier_at(barrier).phase & 1) != parity; });
}
inline void cp_async_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
  emulator::check_shared(to, 16);
  if (to + bytes > SHARED_BYTES || bytes % 16 != 0 || (uintptr_t)from % 16 != 0)
    emulator::fail("expected a copy in bulk of multiples of 16 bytes within shared memory");
  emulator::bulks.push_back({{to, bytes, from}, barrier});
}

template <typename Word>
inline Word load_shared(u32 at) {
  emulator::check_shared(at, sizeof(Word));
  Word word;
  std::memcpy(&word, shared + at, sizeof word);
  return word;
}
inline void ld_shared_v4(u32 (&to)[4], u32 at) {
  emulator::check_shared(at, 16);
  std::memcpy(to, shared + at, 16);
}
inline void ld_shared_v2(u32 (&to)[2], u32 at) {
  emulator::check_shared(at, 8);
  std::memcpy(to, shared + at, 8);
}
inline u32 ld_shared_u32(u32 at) {
  return load_shared<u32>(at);
}
inline u32 ld_shared_u16(u32 at) {
  return load_shared<u16>(at);
}
inline u32 ld_shared_u8(u32 at) {
  return load_shared<u8>(at);
}
inline void st_shared_u32(u32 at, u32 value) {
  emulator::check_shared(at, 4);
  std::memcpy(shared + at, &value, 4);
}
inline void st_shared_u16(u32 at, u16 value) {
  emulator::check_shared(at, 2);
  std::memcpy(shared + at, &value, 2);
}

namespace emulator {

template <typename Format, typename Operation>
inline u32 by_halves(Operation operation, u32 a, u32 b, u32 c = 0) {
  u32 result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const double value =
        operation(Format::load(a >> shift), Format::load(b >> shift), Format::load(c >> shift));
    result |= (u32)Format::store(value) << shift;
  }
  return result;
}

}  // namespace emulator

inline u32 splat_u16(u32 half) {
  return half * 0x10001u;
}
inline u32 sub_f16x2(u32 a, u32 b) {
  return emulator::by_halves<emulator::Half>([](double x, double y, double) { return x - y; }, a, b);
}
inline u32 mul_f16x2(u32 a, u32 b) {
  return emulator::by_halves<emulator::Half>([](double x, double y, double) { return x * y; }, a, b);
}
inline u32 fma_f16x2(u32 a, u32 b, u32 c) {
  return emulator::by_halves<emulator::Half>([](double x, double y, double z) { return x * y + z; }, a, b, c);
}
inline u32 mul_bf16x2(u32 a, u32 b) {
  return emulator::by_halves<emulator::Bfloat>([](double x, double y, double) { return x * y; }, a, b);
}
inline u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  return emulator::by_halves<emulator::Bfloat>([](double x, double y, double z) { return x * y + z; }, a, b,
                                               c);
}
inline u32 neg_bf16x2(u32 a) {
  return a ^ 0x80008000u;
}
inline u32 pack_bf16x2(float low, float high) {
  return emulator::Bfloat::store(low) | (u32)emulator::Bfloat::store(high) << 16;
}
template <int Which>
inline u32 splat_half(u32 pair) {
  return (pair >> 16 * Which & 0xffff) * 0x10001u;
}
inline u32 abs_f16x2(u32 pair) {
  return pair & 0x7fff7fffu;
}
inline u32 neg_f16x2(u32 a) {
  return a ^ 0x80008000u;
}
template <int Which>
inline float unpack_f16(u32 pair) {
  return (float)emulator::Half::load((u16)(pair >> 16 * Which));
}
inline u32 pack_f16x2(float low, float high) {
  return emulator::Half::store(low) | (u32)emulator::Half::store(high) << 16;
}
inline float exp2_approx(float a) {
  return std::exp2(a);
}
inline float rcp_approx(float a) {
  return 1.f / a;
}
template <u32 Others>
inline u32 and_or(u32 word, u32 mask) {
  return (word & mask) | Others;
}
inline u32 max_u16x2(u32 a, u32 b) {
  return max(a & 0xffff, b & 0xffff) | max(a >> 16, b >> 16) << 16;
}

namespace emulator {
extern bool concurrent;   // blocks run at the same time, each in a process
extern int* chunks_left;  // how often a planning warp left its chunks to another CTA
}  // namespace emulator

inline u32 semaphore_add(int* semaphore, u32 number) {
  if (number >> 8 & 0xff) __atomic_fetch_add(emulator::chunks_left, 1, __ATOMIC_RELAXED);
  return __atomic_fetch_add(semaphore, number, __ATOMIC_ACQ_REL);
}
inline u32 semaphore_load(const int* semaphore) {
  if (emulator::concurrent && emulator::lane() == 0) usleep(100000);
  return __atomic_load_n(semaphore, __ATOMIC_ACQUIRE);
}
inline void st_relaxed_v4(void* to, const u32 (&words)[4]) {
  if ((uintptr_t)to % 16 != 0) emulator::fail("expected words at a multiple of 16 bytes");
  emulator::block.yield();  // other warps may store first
  for (int i = 0; i < 4; i++) __atomic_store_n((u32*)to + i, words[i], __ATOMIC_RELAXED);
}
inline void ld_relaxed_v4(u32 (&words)[4], const void* from) {
  if ((uintptr_t)from % 16 != 0) emulator::fail("expected words at a multiple of 16 bytes");
  for (int i = 0; i < 4; i++) words[i] = __atomic_load_n((const u32*)from + i, __ATOMIC_RELAXED);
  // A warp that polls them tries again.
  if (emulator::concurrent && emulator::lane() == 0 && words[0] == 0xffffffffu) usleep(100000);
}

inline void prefetch_l2(const void*) {}
inline void launch_dependents() {}
inline void wait_for_previous_grid() {}
template <int Registers>
inline void leave_registers() {}
template <int Registers>
inline void take_registers() {}

inline u64 wgmma_descriptor(u32 at) {
  if (at % 1024 != 0) emulator::fail("expected rows of 128 bytes at a multiple of 1024");
  return at >> 4;
}

#define BFLOAT16 0
#define FLOAT16 1
#define FLOAT32 2

template <int Dtype>
struct Number {
  typedef float Bits;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};
template <>
struct Number<BFLOAT16> {
  typedef u16 Bits;
  static float load(u16 bits) { return __uint_as_float((u32)bits << 16); }
  static u16 store(float value) { return emulator::Bfloat::store(value); }
};
template <>
struct Number<FLOAT16> {
  typedef u16 Bits;
  static float load(u16 bits) { return (float)emulator::Half::load(bits); }
  static u16 store(float value) { return emulator::Half::store(value); }
};
