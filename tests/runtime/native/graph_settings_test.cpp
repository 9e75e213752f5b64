// What the environment says of CUDA graphs.
#include <cstdlib>

#include "api.h"
#include "check.h"
#include "cuda/graph_settings.h"

using namespace etcuda;

TEST(graph_settings_come_from_the_environment_until_they_are_set) {
  setenv("ETCUDA_CUDA_GRAPHS", "no", 1);
  CHECK_FAILS(InvalidArgument, "ETCUDA_CUDA_GRAPHS: expected 0 or 1, got 'no'", cuda_graphs_enabled());
  CHECK_FAILS(InvalidArgument, "ETCUDA_CUDA_GRAPHS", check_graph_settings());
  setenv("ETCUDA_CUDA_GRAPHS", "0", 1);
  CHECK(!cuda_graphs_enabled());
  for (const char* wrong : {"", "-1", "12MB", " 1", "99999999999999999999"}) {
    setenv("ETCUDA_CUDA_GRAPH_MEMORY", wrong, 1);
    CHECK_FAILS(InvalidArgument, "ETCUDA_CUDA_GRAPH_MEMORY: expected a number of bytes",
                check_graph_settings());
  }
  setenv("ETCUDA_CUDA_GRAPH_MEMORY", "4096", 1);
  CHECK_EQ(cuda_graph_memory_limit(), uint64_t{4096});
  etcuda_set_cuda_graphs(1);
  etcuda_set_cuda_graph_memory_limit(0);
  CHECK(cuda_graphs_enabled());
  CHECK_EQ(cuda_graph_memory_limit(), uint64_t{0});
}
