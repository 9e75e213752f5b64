// What the tests of CUDA graphs share.
#pragma once

#include "api.h"
#include "cuda_counts.h"
#include "session/sessions.h"

namespace etcuda_test {

// Turned off while it lives.
struct WithoutGraphs {
  WithoutGraphs() { etcuda_set_cuda_graphs(0); }
  ~WithoutGraphs() { etcuda_set_cuda_graphs(1); }
};

inline BlobRecipe graph_recipe() {
  BlobRecipe recipe = cuda_recipe();
  recipe.image = "image_capturable.so";
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  return recipe;
}

inline EtcudaGraphStats stats() {
  EtcudaGraphStats now{};
  etcuda_graph_stats(&now);
  return now;
}

inline etcuda::MemoryStats device_memory() {
  return etcuda::cuda_allocator(0).stats();
}

inline std::vector<float> plain(Loaded& delegate, const std::vector<float>& x) {
  const WithoutGraphs off;
  return delegate.run(x);
}

}  // namespace etcuda_test
