// How the programs that share a tile of gemm.cu find out that they run at the same time.

#pragma once

#include "tile_scheduler.cuh"

namespace {

// Each program stores its part of a tile, as soon as its own memory for it is clear, and in the end sums some
// chunks of 16 tokens of all parts, whose words it reads until none is missing. So it has to know then that
// the others have cleared theirs. They count themselves in, at the tile's semaphore, in bits 0 to 7. A program
// that has waited in vain, because another one does not run yet, leaves its chunks, as bits 8 to 15 say, to
// who comes last, whom none has to wait for. In bits 16 to 23 it says that it is done with the semaphore, which
// the last one makes zero again.

constexpr int kChunks = BLOCK_M / 16;  // of a tile

// A tile that is shared, as those see it who sum it.
struct Task {
  u32 first_slot, count;  // of the parts
  int first_n, first_m;

  // The first part may be the second one of its program, all others are first ones.
  __device__ __forceinline__ u32 slot(u32 i) const {
    return first_slot + 2 * i - (i > 0 ? first_slot & 1 : 0);
  }
};

__device__ __forceinline__ Task load_task(u32 base, int i) {
  u32 words[4];
  load16(words, base + kTasksAt + i * 16);
  return {words[0], words[1], (int)words[2], (int)words[3]};
}

constexpr int kMostPolls = 1 << 10;  // reads of the semaphore before a wait is given up

// Does something with each part that a program has of a tile that is shared.
template <typename Function>
__device__ __forceinline__ void for_shared(const Work& work, const Function& function) {
  Part part = work.start();
  part.turn = work.turns;
  while (work.next(part))
    if (part.last - part.first < kSteps) function(part);
}

// The chunks of the `mine`th of several. The one with the highest number has none: it may have another tile
// to go on with, all others have nothing else to do.
__device__ __forceinline__ u32 chunks_of(int mine, int all) {
  u32 own = 0;
  for (int i = 0; i < kChunks; i++)
    if (i * (all - 1) / kChunks == mine) own |= 1u << i;
  return own;
}

// A warp clears the parts of all others, and finds out what they are to sum. `part_bytes` are those of all
// warps.
__device__ __forceinline__ void meet(const Work& work, u32 base, u8* partial, int part_bytes, u32 missing,
                                     int* semaphores) {
  const int lane = threadIdx.x % 32;
  for_shared(work, [&](const Part& part) {
    u8* to = partial + (u64)part.slot * part_bytes + lane * 16;
#pragma unroll 1
    for (int i = 0; i < part_bytes; i += 512) put_words(to + i, {missing, missing, missing, missing});
  });
  __syncwarp();
  if (lane > 0) return;
  barrier_arrive(base + kClearAt);
  u32 sums = 0;
  for_shared(work, [&](const Part& part) {
    int first, last;
    work.share(part, first, last);
    const int mine = work.program - first, all = last - first + 1;
    const u32 own = chunks_of(mine, all), done = 1u << 16;
    int* semaphore = semaphores + (part.tile - work.turns * work.programs);
    u32 chunks = own, before = add_to_semaphore(semaphore, own == 0 ? 1 + done : 1);
    if ((int)(before & 0xff) == all - 1) {
      chunks |= before >> 8 & 0xff;
      if (own != 0) before = add_to_semaphore(semaphore, done);
    } else if (own != 0) {
      int polls = kMostPolls;
      while ((int)(read_semaphore(semaphore) & 0xff) != all && polls > 0) polls--;
      before = add_to_semaphore(semaphore, polls > 0 ? done : done | own << 8);
      if ((int)(before & 0xff) != all) chunks = 0;
    }
    if ((int)(before >> 16) == all - 1) *semaphore = 0;
    const int i = part.slot % 2;
    sums |= chunks << i * kChunks;
    const u32 at = base + kTasksAt + i * 16;
    store4(at, (u32)work.slot(part, first));
    store4(at + 4, (u32)all);
    store4(at + 8, (u32)work.first_n(part));
    store4(at + 12, (u32)work.first_m(part));
  });
  store4(base + kOwnAt, sums);
  barrier_arrive(base + kReadyAt);
}

}  // namespace
