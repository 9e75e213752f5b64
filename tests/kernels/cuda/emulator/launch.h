// Launches the kernel whose source was included in front. Included last.

#pragma once

#include <sys/mman.h>
#include <sys/wait.h>

#include "wgmma.cuh"

alignas(1024) unsigned char shared[emulator::kSharedBytes];

namespace emulator {

unsigned words[kMaxThreads];
SyncPoint warps[kMaxThreads / 32], all, warpgroups[kMaxThreads / 128];
int num_threads;
Copies copies[kMaxThreads];
std::map<u32, Barrier> barriers;
std::vector<Bulk> bulks;
PendingWgmma pending[kMaxThreads];
u32 operands[kMaxThreads][4];
bool concurrent = false;
int* chunks_left = nullptr;

// Makes some of the copies that are in flight.
inline void make_some_copies(std::mt19937& random) {
  if (random() % 64 != 0) return;
  for (size_t i = 0; i < bulks.size(); i++) {
    if (random() % 2) continue;
    Bulk bulk = bulks[i];
    bulks.erase(bulks.begin() + i--);
    bulk.copy.make();
    Barrier& barrier = barrier_at(bulk.barrier);
    barrier.bytes -= bulk.copy.bytes;
    barrier.settle();
  }
  auto& groups = copies[random() % num_threads].groups;
  for (auto& group : groups)
    for (Copy& copy : group)
      if (random() % 4 == 0) copy.make();
}

// Runs blocks one after another, from the last one to the first with an odd seed, else from the first to the
// last, or all of them at once, each in a process of its own. Prints how often a planning warp left its
// chunks to another CTA.
template <typename Kernel>
void launch(unsigned blocks_x, unsigned blocks_y, int threads, unsigned seed, bool at_once, Kernel kernel) {
  concurrent = at_once;
  chunks_left = (int*)mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (chunks_left == MAP_FAILED) fail("expected memory that processes share");
  std::mt19937 random(seed);
  num_threads = threads;
  gridDim = {blocks_x, blocks_y, 1};
  const unsigned count = blocks_x * blocks_y;
  for (unsigned each = 0; each < count; each++) {
    const unsigned i = seed % 2 ? count - 1 - each : each;
    if (concurrent && fork() != 0) continue;
    blockIdx = {i % blocks_x, i / blocks_x, 0};
    std::memset(shared, 0xff, sizeof shared);
    barriers.clear();
    bulks.clear();
    for (int t = 0; t < threads; t++) {
      copies[t] = Copies();
      pending[t] = PendingWgmma();
    }
    block.run(threads, kernel, [&] { make_some_copies(random); }, random);
    if (!bulks.empty()) fail("expected copies in bulk to be waited for before the end");
    if (concurrent) _exit(0);
  }
  for (int status = 0; concurrent && wait(&status) > 0;)
    if (status != 0) fail("expected every block to end well");
  std::printf("%d\n", *chunks_left);
}

}  // namespace emulator
