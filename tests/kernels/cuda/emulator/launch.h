// Launches the kernel whose source was included in front. Included last.

#pragma once

#include <sys/mman.h>
#include <sys/wait.h>

#include "products.cuh"

alignas(1024) unsigned char shared[emulator::kSharedBytes];

namespace emulator {

unsigned words[kMostThreads];
Meeting warps[kMostThreads / 32], all, warpgroups[kMostThreads / 128];
int num_threads;
Copies copies[kMostThreads];
std::map<u32, Barrier> barriers;
std::vector<Bulk> bulks;
Products products[kMostThreads];
u32 operands[kMostThreads][4];
bool at_once = false;
int* gave_up = nullptr;

// Copies that happen by themselves, some of them.
inline void go_on(std::mt19937& random) {
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

// Runs blocks one after another, the last one first with an odd seed and last with an even one, or all at
// once, each in a process of its own. Says how often a warp gave up waiting for others.
template <typename Kernel>
void launch(unsigned blocks_x, unsigned blocks_y, int threads, unsigned seed, bool together, Kernel kernel) {
  at_once = together;
  gave_up = (int*)mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (gave_up == MAP_FAILED) fail("expected memory that processes share");
  std::mt19937 random(seed);
  num_threads = threads;
  gridDim = {blocks_x, blocks_y, 1};
  const unsigned count = blocks_x * blocks_y;
  for (unsigned each = 0; each < count; each++) {
    const unsigned i = seed % 2 ? count - 1 - each : each;
    if (at_once && fork() != 0) continue;
    blockIdx = {i % blocks_x, i / blocks_x, 0};
    std::memset(shared, 0xff, sizeof shared);
    barriers.clear();
    bulks.clear();
    for (int t = 0; t < threads; t++) {
      copies[t] = Copies();
      products[t] = Products();
    }
    block.run(threads, kernel, [&] { go_on(random); }, random);
    if (!bulks.empty()) fail("expected copies in bulk to be waited for before the end");
    if (at_once) _exit(0);
  }
  for (int status = 0; at_once && wait(&status) > 0;)
    if (status != 0) fail("expected every block to end well");
  std::printf("%d\n", *gave_up);
}

}  // namespace emulator
