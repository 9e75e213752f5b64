// The fixup of stream-K: CTAs that share a tile add up their partials.
//
// A shared tile has P peers, the CTAs that have steps of it, in the order of their steps; P is 2 to 255. Each
// peer stores a partial of the whole tile to its slot in global memory. Each peer but the last one then sums
// some of the tile's chunks of 16 tokens: it loads them from all P partials, adds them up in the order of the
// peers, so that results repeat to the bit, and stores the result. The last peer has no chunks, for its range
// may go on in the next tile. The ranges of all others end in this one.
//
// One warp of each CTA plans this while the others multiply (plan_fixup): it clears the CTA's slots and finds
// out which chunks the CTA has to sum. When the other warps have stored the CTA's partials, they sum these
// chunks (fixup).
//
// The protocol
//
// It assumes nothing about which CTAs run at the same time.
//
// A word is its own flag. A word of a partial that has not been stored is kNotReady, all ones, and a reader
// loads the words again and again until none of them is. A word of 32 bits is stored and loaded as a whole,
// and a reader concludes nothing from one word about another, so relaxed stores and loads at GPU scope
// suffice, without a fence and without a flag beside the data. A sum is never mistaken for kNotReady: all
// ones would be NaN, as float32 and as a pair of bfloat16, and store_partial() stores the word 0xfffffffe
// instead, which is NaN too in both readings (in both halves of the pair). So NaN arrives as NaN, and every
// word arrives.
//
// Clearing. A slot may hold words of an earlier kernel, so all of its words must be kNotReady before a CTA
// polls it. The planning warp of a CTA stores kNotReady to the CTA's own slots, one or two; that is the only
// CTA that writes them. It begins after wait_for_previous_grid(), when kernels that used the same memory have
// ended. When the slots are clear, its lane 0 arrives at the mbarrier kSmemCleared. The other warps wait
// there before they store a partial, so clearing never overwrites one.
//
// The semaphore. Each shared tile has one; it is zero when the kernel begins. Lane 0 of the planning warp of
// each peer adds to it, with acquire and release at GPU scope:
//
//   bits 0 to 7     how many peers have cleared their slots
//   bits 8 to 15    chunks, a bit each, that peers have left to the peer that is the last to clear its slot
//   bits 16 to 23   how many peers are done with the semaphore
//
// A __syncwarp() orders the clearing stores of the other lanes in front of the addition. So when a peer finds
// P in bits 0 to 7, all slots of the tile are clear, and it, and after the mbarrier kSmemPlanned also the
// other warps of its CTA, load from them either kNotReady or a partial of this kernel, nothing older.
//
// What a peer does at the semaphore, after it has cleared its slots:
//
//   - It adds 1 to bits 0 to 7. If that makes P, it sums its own chunks and those that bits 8 to 15 named
//     before.
//   - Otherwise, if it has chunks, it reads the semaphore until bits 0 to 7 are P, at most kMaxPolls times.
//     If they are, it sums its chunks. If not, because a peer does not run yet, it adds its chunks to bits 8
//     to 15. When that addition returns less than P in bits 0 to 7, the peer that makes P will find these
//     chunks and sum them. When it returns P, that peer came in between and did not find them, and this one
//     sums its chunks itself. Additions to a semaphore happen in one order, so exactly one CTA sums each
//     chunk.
//   - Otherwise it has no chunks, and it waits for nothing.
//   - In its last addition, and only there, it adds 1 to bits 16 to 23. If that makes P, no peer reads the
//     semaphore any more, and it stores 0. So all semaphores are zero when the kernel ends. The next kernel
//     that uses them may start before that, but its planning warps wait for the end of this one first. (A
//     reorder kernel makes them zero in the beginning.)
//
// No deadlock. The planning warp reads the semaphore a bounded number of times. The only wait without a bound
// for another CTA is that for the words of partials. A CTA waits for them only when all peers have counted
// themselves at the semaphore, so all of them run. And a CTA that runs stores its partials without waiting
// for another one: its warps sum nothing before they have stored all of the CTA's partials, and what they
// wait for in front of that, kSmemCleared, depends on warps of the same CTA alone.

#pragma once

#include "epilogue.cuh"
#include "partials.cuh"

namespace {

constexpr int kMaxPolls = 1 << 10;

// A tile that the CTA shares, as the planning warp leaves it in shared memory for the others.
struct SharedTile {
  u32 first_slot, num_peers;
  int first_n, first_m;

  // The slot of the ith peer. The first peer's may be the second of its CTA, all others are the first of
  // theirs.
  __device__ __forceinline__ u32 slot(u32 i) const {
    return first_slot + 2 * i - (i > 0 ? first_slot & 1 : 0);
  }
};

__device__ __forceinline__ SharedTile load_shared_tile(u32 smem, int i) {
  u32 words[4];
  ld_shared_v4(words, smem + kSmemSharedTiles + i * 16);
  return {words[0], words[1], (int)words[2], (int)words[3]};
}

// Calls a function for each tile that the CTA shares.
template <typename Function>
__device__ __forceinline__ void for_each_shared_tile(const TileScheduler& scheduler,
                                                     const Function& function) {
  WorkTileInfo work = scheduler.initial_stream_k_work();
  while (scheduler.next_work(work))
    if (work.is_shared()) function(work);
}

// The chunks of a peer, a bit each; the last peer has none.
__device__ __forceinline__ u32 chunks_of_peer(int peer, int num_peers) {
  u32 chunks = 0;
  for (int i = 0; i < kChunks; i++)
    if (i * (num_peers - 1) / kChunks == peer) chunks |= 1u << i;
  return chunks;
}

// What a peer does at a tile's semaphore. Returns the chunks that its CTA sums.
__device__ __forceinline__ u32 claim_chunks(int* semaphores, int tile, int peer, int num_peers) {
  const u32 own = chunks_of_peer(peer, num_peers), done = 1u << 16;
  int* semaphore = semaphores + tile;
  u32 chunks = own, before = semaphore_add(semaphore, own == 0 ? 1 + done : 1);
  if ((int)(before & 0xff) == num_peers - 1) {
    chunks |= before >> 8 & 0xff;
    if (own != 0) before = semaphore_add(semaphore, done);
  } else if (own != 0) {
    int polls = kMaxPolls;
    while ((int)(semaphore_load(semaphore) & 0xff) != num_peers && polls > 0) polls--;
    before = semaphore_add(semaphore, polls > 0 ? done : done | own << 8);
    if ((int)(before & 0xff) != num_peers) chunks = 0;
  }
  if ((int)(before >> 16) == num_peers - 1) *semaphore = 0;
  return chunks;
}

// One warp clears the CTA's slots and leaves the plan in shared memory: the chunks that the CTA sums, kChunks
// bits for each of its two slots, and the tiles. It waits for the first loads of activations, so that these
// come first.
__device__ __forceinline__ void plan_fixup(const TileScheduler& scheduler, u32 smem, u8* partials,
                                           int* semaphores) {
  if (scheduler.range_begin >= scheduler.range_end) return;
  wait_for_previous_grid();
  mbarrier_wait(smem + kSmemStarted, 0);
  for_each_shared_tile(scheduler, [&](const WorkTileInfo& work) { clear_partial(partials, work.slot); });
  __syncwarp();
  if (threadIdx.x % 32 > 0) return;
  mbarrier_arrive(smem + kSmemCleared);
  u32 chunks = 0;
  for_each_shared_tile(scheduler, [&](const WorkTileInfo& work) {
    int first, last;
    scheduler.peers(work, first, last);
    const int peer = scheduler.cta - first, num_peers = last - first + 1, i = work.slot % 2;
    chunks |= claim_chunks(semaphores, scheduler.shared_index(work), peer, num_peers) << i * kChunks;
    const u32 tile = smem + kSmemSharedTiles + i * 16;
    st_shared_u32(tile, (u32)scheduler.slot_of(work, first));
    st_shared_u32(tile + 4, (u32)num_peers);
    st_shared_u32(tile + 8, (u32)scheduler.first_n(work));
    st_shared_u32(tile + 12, (u32)scheduler.first_m(work));
  });
  st_shared_u32(smem + kSmemChunks, chunks);
  mbarrier_arrive(smem + kSmemPlanned);
}

// Fragments that a lane polls at the same time. With more, the registers that the kernel leaves free would
// not be enough for CTAs of a reorder kernel that is launched early.
constexpr u32 kFragmentsInFlight = kBf16Partials ? 8 : 4;

// A warp sums `Chunks` chunks of its rows over the partials of all peers, in their order. `from` is where the
// first of these chunks begins in the first partial.
template <int Chunks>
__device__ __forceinline__ void sum_partials(float (&sums)[Chunks * 8], const SharedTile& tile,
                                             const u8* from) {
  constexpr u32 kPeersInFlight = kFragmentsInFlight / Chunks;
  from += threadIdx.x % 32 * 16;
#pragma unroll
  for (int j = 0; j < Chunks * 8; j++) sums[j] = 0.f;
#pragma unroll 1
  for (u32 i = 0; i < tile.num_peers; i += kPeersInFlight) {
    PartialFragment fragments[kFragmentsInFlight];
#pragma unroll
    for (u32 j = 0; j < kFragmentsInFlight; j++)
      fragments[j].fill(i + j % kPeersInFlight < tile.num_peers ? kNotReady : 0);
    bool ready;
    do {
#pragma unroll
      for (u32 j = 0; j < kFragmentsInFlight; j++)
        if (!fragments[j].is_ready())
          fragments[j].poll(from +
                            (u64)(tile.slot(i + j % kPeersInFlight) - tile.first_slot) * kPartialBytes +
                            j / kPeersInFlight * kChunkBytes);
      ready = true;
#pragma unroll
      for (u32 j = 0; j < kFragmentsInFlight; j++) ready = ready && fragments[j].is_ready();
    } while (__any_sync(0xffffffff, !ready));
#pragma unroll
    for (u32 j = 0; j < kFragmentsInFlight; j++) fragments[j].add_to(sums + j / kPeersInFlight * 8);
  }
}

// A warp sums its rows of `Chunks` chunks of a shared tile, and stores the results.
template <int Chunks>
__device__ __forceinline__ void fixup(const SharedTile& tile, int chunk, u8* partials, int warp,
                                      const Epilogue& epilogue) {
  float sums[Chunks * 8];
  sum_partials<Chunks>(sums, tile, partial_address(partials, tile.first_slot, warp) + chunk * kChunkBytes);
  store<Chunks * 16>(sums, epilogue, tile.first_n + warp * 16, tile.first_m + chunk * 16);
}

}  // namespace
