// What CUDA graphs hold, against the fake driver: how much, and what happens where it runs out.
#include "graphs.h"

using namespace etcuda;
using namespace etcuda_test;

TEST(cuda_graphs_are_bounded_in_number_and_memory) {
  BlobRecipe recipe = graph_recipe();
  recipe.state.clear();
  recipe.state_bytes = 4096;
  recipe.weight = bytes_of(std::vector<float>(1024, 1.0f));
  recipe.max_length = 1024;
  const MemoryDataMap data(recipe);
  const uint64_t free_before = device_memory().allocated;
  {
    Loaded delegate(recipe.build(), &data);
    const auto run = [&](int32_t length) {
      TensorValue in = TensorValue::floats(std::vector<float>(static_cast<size_t>(length), 0.0f));
      TensorValue out(executorch::aten::ScalarType::Float, {1024}, 4);
      CHECK(delegate.execute({in.value(), out.value()}) == Error::Ok);
    };
    for (int32_t length = 10; length < 120; ++length) {
      for (int i = 0; i < 4; ++i) run(length);
    }
    CHECK_EQ(counts().graphs, size_t{32});
    // One call's memory, not that of thirty-two.
    CHECK(device_memory().graphs > 0);
#if !defined(__SANITIZE_ADDRESS__)
    CHECK(device_memory().graphs <= 4 * 512);
    CHECK(pinned_allocator().stats().graphs <= 2 * 4096);
#endif
    // The one used last is there still, the first is recorded anew.
    const uint64_t captures = stats().captures;
    run(119);
    CHECK_EQ(stats().captures, captures);
    for (int i = 0; i < 3; ++i) run(10);
    CHECK_EQ(stats().captures, captures + 1);
  }
  CHECK_EQ(counts().graphs, size_t{0});
  CHECK_EQ(device_memory().graphs, uint64_t{0});
  CHECK_EQ(device_memory().allocated, free_before);
}

TEST(cuda_graph_memory_is_that_of_the_largest_call) {
  BlobRecipe recipe = graph_recipe();
  const size_t most = size_t{1} << 20;
  recipe.state.clear();
  recipe.state_bytes = 4 * most;
  recipe.weight = bytes_of(std::vector<float>(most, 1.0f));
  recipe.max_length = static_cast<int64_t>(most);
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  TensorValue out(executorch::aten::ScalarType::Float, {static_cast<int32_t>(most)}, 4);
  const auto round = [&] {
    for (size_t length = 600000; length <= most; length += 40000) {
      TensorValue in = TensorValue::floats(std::vector<float>(length, 0.0f));
      for (int i = 0; i < 3; ++i) CHECK(delegate.execute({in.value(), out.value()}) == Error::Ok);
    }
  };
  // Each call takes a little more than the one before, an input and an output of at most 4 MiB.
  round();
  CHECK(device_memory().graphs <= size_t{17} << 20);
  CHECK(pinned_allocator().stats().graphs <= size_t{17} << 20);
  round();
  const uint64_t captures = stats().captures;
  round();
  CHECK_EQ(stats().captures, captures);
  CHECK(counts().graphs > 8);
}

TEST(cuda_graph_memory_is_kept_from_others) {
  const BlobRecipe recipe = graph_recipe();
  BlobRecipe renamed = recipe;
  renamed.state_name = "another";
  const MemoryDataMap data(recipe), other_data(renamed);
  Loaded delegate(recipe.build(), &data), other(renamed.build(), &other_data);
  for (int i = 0; i < 3; ++i) delegate.run({0, 0, 0});
  for (int i = 0; i < 20; ++i) {
    plain(other, {7, 7, 7});
    etcuda_empty_cache();
    CHECK_VALUES(delegate.run({0, 0, 1}), {10, 40, 3 * (31 + static_cast<float>(i))});
  }
}

#if !defined(__SANITIZE_ADDRESS__)
TEST(cuda_graphs_keep_memory_flat) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const auto round = [&] {
    for (size_t size = 0; size < 5; ++size) delegate.run(std::vector<float>(size, 0.0f));
  };
  for (int i = 0; i < 4; ++i) round();
  const MemoryStats device = device_memory();
  const uint64_t host = host_allocator().stats().calls, pinned = pinned_allocator().stats().calls;
  for (int i = 0; i < 2000; ++i) round();
  CHECK_EQ(device_memory().calls, device.calls);
  CHECK_EQ(device_memory().allocated, device.allocated);
  CHECK_EQ(host_allocator().stats().calls, host);
  CHECK_EQ(pinned_allocator().stats().calls, pinned);
}
#endif

TEST(cuda_out_of_memory_while_capturing_leaves_a_working_method) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  // The driver's first refusal is made up for by what is kept for reuse, a second one is not.
  delegate.run({1, 1});
  fail_next("cuGraphInstantiate", 2);
  CHECK_VALUES(delegate.run({1, 1}), {12, 44});
  CHECK_EQ(counts().graphs, size_t{1});
  // At the bound of what graphs may hold, a graph that makes do with what its delegate's others have is made.
  const EtcudaGraphStats before = stats();
  etcuda_set_cuda_graph_memory_limit(1);
  for (int i = 0; i < 4; ++i) delegate.run({0});
  CHECK_EQ(stats().refusals, before.refusals);
  Loaded second(recipe.build(), &data);
  for (int i = 0; i < 4; ++i) second.run({0, 0});
  etcuda_set_cuda_graph_memory_limit(0);
  CHECK_EQ(counts().graphs, size_t{2});
  CHECK_EQ(stats().refusals - before.refusals, uint64_t{1});
  CHECK_VALUES(delegate.run({1, 1}), {13, 46});
  CHECK_VALUES(second.run({0, 0}), {13, 46});
}

TEST(cuda_graphs_go_before_an_allocation_fails) {
  const BlobRecipe recipe = graph_recipe();
  BlobRecipe renamed = recipe;
  renamed.state_name = "another";
  const MemoryDataMap data(recipe), other_data(renamed);
  Loaded delegate(recipe.build(), &data), other(renamed.build(), &other_data);
  for (int i = 0; i < 3; ++i) delegate.run({1, 1});
  for (int i = 0; i < 3; ++i) other.run({1, 1});
  etcuda_empty_cache();
  CHECK_EQ(counts().graphs, size_t{2});
  // Room for what is in use, and no more: the states of a session take that of all graphs.
  etcuda_set_memory_limit(1, 0, device_memory().allocated);
  {
    const Session session;
    CHECK_VALUES(run_in(session, delegate, {1, 1}), {11, 42});
  }
  etcuda_set_memory_limit(1, 0, 0);
  CHECK_EQ(counts().graphs, size_t{0});
  CHECK_EQ(device_memory().graphs, uint64_t{0});
  // They are made again.
  for (int i = 4; i <= 6; ++i) CHECK_VALUES(delegate.run({1, 1}), {10.0f + i, 2 * (20.0f + i)});
  for (int i = 4; i <= 6; ++i) CHECK_VALUES(other.run({1, 1}), {10.0f + i, 2 * (20.0f + i)});
  CHECK_EQ(counts().graphs, size_t{2});
}
