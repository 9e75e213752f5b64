// What kernels/cuda/ptx.cuh has, emulated. Copies by threads happen as late as they may, or at any moment
// before; so do copies in bulk. Products are computed when they are asked for, and their registers become NaN
// until somebody waits for them.

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
extern Copies copies[kMostThreads];

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

inline void copy16(u32 to, const void* from) {
  emulator::start_copy(to, from, 16);
}
inline void copy8(u32 to, const void* from) {
  emulator::start_copy(to, from, 8);
}
inline void commit_copies() {
  emulator::copies[threadIdx.x].groups.emplace_back();
}
template <int Newest>
inline void wait_for_copies() {
  auto& groups = emulator::copies[threadIdx.x].groups;
  while (groups.size() > Newest + 1) {
    for (auto& copy : groups.front()) copy.make();
    groups.pop_front();
  }
}

inline void barrier_init(u32 barrier, u32 count) {
  emulator::check_shared(barrier, 8);
  emulator::barriers[barrier] = {(int)count, (int)count, 0, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive(u32 barrier) {
  auto& at = emulator::barrier_at(barrier);
  if (at.missing == 0) emulator::fail("expected no more arrivals than the barrier waits for");
  at.missing--;
  at.settle();
}
inline void barrier_expect(u32 barrier, u32 bytes) {
  emulator::barrier_at(barrier).bytes += bytes;
  barrier_arrive(barrier);
}
inline void barrier_wait(u32 barrier, u32 parity) {
  emulator::block.until([&] { return (emulator::barrier_at(barrier).phase & 1) != parity; });
}
inline void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
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
inline void load16(u32 (&to)[4], u32 at) {
  emulator::check_shared(at, 16);
  std::memcpy(to, shared + at, 16);
}
inline void load8(u32 (&to)[2], u32 at) {
  emulator::check_shared(at, 8);
  std::memcpy(to, shared + at, 8);
}
inline u32 load4(u32 at) {
  return load_shared<u32>(at);
}
inline u32 load2(u32 at) {
  return load_shared<u16>(at);
}
inline u32 load1(u32 at) {
  return load_shared<u8>(at);
}
inline void store4(u32 at, u32 value) {
  emulator::check_shared(at, 4);
  std::memcpy(shared + at, &value, 4);
}
inline void store2(u32 at, u16 value) {
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

inline u32 twice(u32 half) {
  return half * 0x10001u;
}
inline u32 sub2(u32 a, u32 b) {
  return emulator::by_halves<emulator::Half>([](double x, double y, double) { return x - y; }, a, b);
}
inline u32 mul2(u32 a, u32 b) {
  return emulator::by_halves<emulator::Half>([](double x, double y, double) { return x * y; }, a, b);
}
inline u32 fma2(u32 a, u32 b, u32 c) {
  return emulator::by_halves<emulator::Half>([](double x, double y, double z) { return x * y + z; }, a, b, c);
}
inline u32 wide_mul2(u32 a, u32 b) {
  return emulator::by_halves<emulator::Bfloat>([](double x, double y, double) { return x * y; }, a, b);
}
inline u32 wide_fma2(u32 a, u32 b, u32 c) {
  return emulator::by_halves<emulator::Bfloat>([](double x, double y, double z) { return x * y + z; }, a, b,
                                               c);
}
inline u32 wide_negative2(u32 a) {
  return a ^ 0x80008000u;
}
inline u32 wide_pair(float low, float high) {
  return emulator::Bfloat::store(low) | (u32)emulator::Bfloat::store(high) << 16;
}
template <int Which>
inline u32 one_twice(u32 pair) {
  return (pair >> 16 * Which & 0xffff) * 0x10001u;
}
inline u32 without_signs(u32 pair) {
  return pair & 0x7fff7fffu;
}
inline u32 negative2(u32 a) {
  return a ^ 0x80008000u;
}
template <int Which>
inline float one_of(u32 pair) {
  return (float)emulator::Half::load((u16)(pair >> 16 * Which));
}
inline u32 pair_of(float low, float high) {
  return emulator::Half::store(low) | (u32)emulator::Half::store(high) << 16;
}
inline float exp2_of(float a) {
  return std::exp2(a);
}
inline float reciprocal(float a) {
  return 1.f / a;
}
template <u32 Others>
inline u32 masked_or(u32 word, u32 mask) {
  return (word & mask) | Others;
}
inline u32 greater_halves(u32 a, u32 b) {
  return max(a & 0xffff, b & 0xffff) | max(a >> 16, b >> 16) << 16;
}

namespace emulator {
extern bool at_once;  // blocks run beside each other, each in a process
extern int* gave_up;  // how often a warp left its share to others
}  // namespace emulator

inline u32 add_to_semaphore(int* semaphore, u32 number) {
  if (number >> 8 & 0xff) __atomic_fetch_add(emulator::gave_up, 1, __ATOMIC_RELAXED);
  return __atomic_fetch_add(semaphore, number, __ATOMIC_ACQ_REL);
}
inline u32 read_semaphore(const int* semaphore) {
  if (emulator::at_once && emulator::lane() == 0) usleep(100000);
  return __atomic_load_n(semaphore, __ATOMIC_ACQUIRE);
}
inline void put_words(void* to, const u32 (&words)[4]) {
  if ((uintptr_t)to % 16 != 0) emulator::fail("expected words at a multiple of 16 bytes");
  emulator::block.yield();  // others may be faster
  for (int i = 0; i < 4; i++) __atomic_store_n((u32*)to + i, words[i], __ATOMIC_RELAXED);
}
inline void see_words(u32 (&words)[4], const void* from) {
  if ((uintptr_t)from % 16 != 0) emulator::fail("expected words at a multiple of 16 bytes");
  for (int i = 0; i < 4; i++) words[i] = __atomic_load_n((const u32*)from + i, __ATOMIC_RELAXED);
  // Who waits for them tries again.
  if (emulator::at_once && emulator::lane() == 0 && words[0] == 0xffffffffu) usleep(100000);
}

inline void launch_dependents() {}
inline void wait_for_previous() {}

inline u64 describe_rows_of_128(u32 at) {
  if (at % 1024 != 0) emulator::fail("expected rows of 128 bytes at a multiple of 1024");
  return at >> 4;
}

#define BFLOAT16 0
#define FLOAT16 1
#define FLOAT32 2

template <int Kind>
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
