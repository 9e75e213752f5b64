// The kernel in decode.cu, emulated. Arguments: KV heads, batch, L_kv, seed; files: q, k, v, kv_len,
// positions, sinks, out, which the kernel writes.

#include "cluster.cuh"
#include "memory.h"
#include SOURCE
#include "launch.h"

namespace emulator {
Cluster* cluster = nullptr;
int cluster_size = CLUSTER, cluster_rank = 0, delivered = 0;
int arrivals[kMaxThreads], waits[kMaxThreads], here[4];
}  // namespace emulator

int main(int argc, char** argv) {
  const Arguments arguments(argc, argv, 4);
  Memory q(arguments.file(0)), k(arguments.file(1)), v(arguments.file(2)), kv_len(arguments.file(3)),
      positions(arguments.file(4)), sinks(arguments.file(5)), out(arguments.file(6));
  emulator::num_threads = THREADS;
  gridDim = {CLUSTER, (unsigned)arguments[0], (unsigned)arguments[1]};
  for (unsigned each = 0; each < gridDim.y * gridDim.z; each++) {
    emulator::cluster = (emulator::Cluster*)mmap(nullptr, sizeof(emulator::Cluster), PROT_READ | PROT_WRITE,
                                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (emulator::cluster == MAP_FAILED) emulator::fail("expected memory that processes share");
    for (unsigned rank = 0; rank < CLUSTER; rank++) {
      if (fork() != 0) continue;
      std::mt19937 random(arguments[3] + each * CLUSTER + rank);
      blockIdx = {rank, each % gridDim.y, each / gridDim.y};
      emulator::cluster_rank = rank;
      std::memset(shared, 0xff, sizeof shared);
      emulator::block.run(
          THREADS,
          [&] {
            NAME((const u16*)q.data(), (const u16*)k.data(), (const u16*)v.data(), kv_len.data(),
                 positions.data(), sinks.data(), (u16*)out.data(), arguments[2] + 2, nullptr, nullptr);
          },
          [] {}, random);
      _exit(0);
    }
    for (int status = 0; wait(&status) > 0;)
      if (status != 0) emulator::fail("expected every block to end well");
    munmap(emulator::cluster, sizeof(emulator::Cluster));
  }
  std::printf("0\n");
  out.save();
}
