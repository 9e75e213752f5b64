// Whether calls are captured in CUDA graphs, how much memory those may hold, and how often it happened.
#pragma once

#include <atomic>
#include <cstdint>

namespace etcuda {

// As set, else as the environment variable ETCUDA_CUDA_GRAPHS says, else true. Throws Failure if that is
// neither 0 nor 1.
bool cuda_graphs_enabled();
void set_cuda_graphs(bool enabled) noexcept;

// Bytes that the graphs of one device may hold, 0 for no bound: as set, else as ETCUDA_CUDA_GRAPH_MEMORY
// says, else 0. Throws Failure if that is no number.
uint64_t cuda_graph_memory_limit();
void set_cuda_graph_memory_limit(uint64_t nbytes) noexcept;

// Throws Failure if the environment says neither of both as it should.
void check_graph_settings();

// Of the whole process.
struct GraphCounts {
  std::atomic<uint64_t> live{0};      // graphs that are kept
  std::atomic<uint64_t> captures{0};  // graphs made so far
  std::atomic<uint64_t> replays{0};   // calls that launched one
  std::atomic<uint64_t> refusals{0};  // captures that failed
};
GraphCounts& graph_counts();

}  // namespace etcuda
