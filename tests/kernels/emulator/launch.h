// Launches the kernel whose source was included in front. Included last.

#pragma once

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

// Runs blocks one after another, the last one first.
template <typename Kernel>
void launch(unsigned blocks_x, unsigned blocks_y, int threads, unsigned seed, Kernel kernel) {
  std::mt19937 random(seed);
  num_threads = threads;
  gridDim = {blocks_x, blocks_y, 1};
  for (unsigned i = blocks_x * blocks_y; i-- > 0;) {
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
  }
}

}  // namespace emulator
