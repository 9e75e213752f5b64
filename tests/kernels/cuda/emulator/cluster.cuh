// kernels/cuda/cluster.cuh, emulated. CTAs of a cluster are processes; what they store to each other arrives
// at the barrier behind it.

#pragma once

#include <unistd.h>

#include <atomic>

#include "ptx.cuh"

namespace emulator {

struct Letter {
  u32 at;
  float value;
};
struct Cluster {
  std::atomic<int> arrived[4], letters[8];
  Letter box[8][1 << 15];
};
extern Cluster* cluster;
extern int cluster_size, cluster_rank, delivered;
// Of each thread: how often it has arrived, and waited. Of each barrier: the block's threads that have
// arrived.
extern int arrivals[kMaxThreads], waits[kMaxThreads], here[4];

}  // namespace emulator

inline void cluster_arrive() {
  const int round = emulator::arrivals[threadIdx.x]++;
  if (round >= 4) emulator::fail("expected at most four barriers of the cluster");
  if (++emulator::here[round] == emulator::num_threads) emulator::cluster->arrived[round]++;
}
inline void cluster_wait() {
  const int round = emulator::waits[threadIdx.x]++;
  if (round >= emulator::arrivals[threadIdx.x]) emulator::fail("expected an arrival before the wait");
  emulator::block.until([round] {
    if (emulator::cluster->arrived[round] == emulator::cluster_size) return true;
    usleep(20);
    return false;
  });
  // Stores follow the first barrier, and are complete at the second.
  while (round > 0 && emulator::delivered < emulator::cluster->letters[emulator::cluster_rank]) {
    const emulator::Letter& letter = emulator::cluster->box[emulator::cluster_rank][emulator::delivered++];
    std::memcpy(shared + letter.at, &letter.value, sizeof letter.value);
  }
}
inline void store_to_cta(float* at, u32 rank, float value) {
  const u32 offset = (unsigned char*)at - shared;
  emulator::check_shared(offset, 4);
  if (!emulator::waits[threadIdx.x])
    emulator::fail("expected a wait for the cluster before a store to another CTA");
  if (rank >= (u32)emulator::cluster_size) emulator::fail("expected a CTA of the cluster");
  // A place is taken at once, and filled before this CTA arrives at a barrier.
  emulator::cluster->box[rank][emulator::cluster->letters[rank]++] = {offset, value};
}
