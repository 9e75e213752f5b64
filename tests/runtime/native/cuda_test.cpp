// The delegate on a GPU against the fake driver, which the environment puts first in the search path.
#include <cstdlib>

#include "api.h"
#include "cuda/stream.h"
#include "cuda_counts.h"
#include "program.h"

using namespace etcuda;
using namespace etcuda_test;

namespace {

MemoryStats device_stats() {
  return cuda_allocator(0).stats();
}

}  // namespace

TEST(cuda_delegate_runs_and_keeps_state) {
  CHECK(etcuda_gpu_available() == 1);
  BlobRecipe recipe = cuda_recipe();
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  const MemoryDataMap data(recipe);
  {
    Loaded delegate(recipe.build(), &data), other(recipe.build(), &data);
    CHECK_VALUES(delegate.run({1, 1, 1}), {11, 42, 93});
    CHECK_VALUES(other.run({1, 1}), {12, 44});
    CHECK_VALUES(delegate.run({}), {});
    CHECK_EQ(etcuda_reset_state(), int64_t{1});
    CHECK_VALUES(other.run({1, 1}), {11, 42});
    CHECK(counts().launches >= 3);
    CHECK_EQ(counts().modules, size_t{2});
  }
  CHECK_EQ(counts().modules, size_t{0});
  CHECK_EQ(counts().streams, size_t{0});
  CHECK_EQ(counts().events, size_t{0});
  CHECK_EQ(device_stats().allocated, uint64_t{0});
  etcuda_empty_cache();
  CHECK_EQ(counts().blocks, size_t{0});
}

#if !defined(__SANITIZE_ADDRESS__)
TEST(cuda_repeated_shapes_allocate_nothing) {
  const BlobRecipe recipe = cuda_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  for (int i = 0; i < 3; ++i) delegate.run({1, 2, 3});
  const uint64_t device = device_stats().calls, host = host_allocator().stats().calls;
  const uint64_t pinned = pinned_allocator().stats().calls;
  for (int i = 0; i < 50; ++i) delegate.run({1, 2, 3});
  CHECK_EQ(device_stats().calls, device);
  CHECK_EQ(host_allocator().stats().calls, host);
  CHECK_EQ(pinned_allocator().stats().calls, pinned);
}
#endif

TEST(cuda_constants_are_shared_by_content) {
  BlobRecipe recipe = cuda_recipe();
  recipe.weight = Bytes(1 << 20, 0);
  recipe.state_bytes = 32;
  const MemoryDataMap one(recipe), two(recipe);
  Loaded first(recipe.build(), &one);
  const uint64_t once = device_stats().allocated;
  Loaded second(recipe.build(), &two);
  CHECK(device_stats().allocated < once + 4096);
}

TEST(cuda_large_weights_pass_through_staging) {
  BlobRecipe recipe = cuda_recipe();
  // More than two staging buffers of 16 MiB, and not a multiple of one.
  std::vector<float> weight((40u << 20) / 4 + 3);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 1000) + 1;
  recipe.weight = bytes_of(weight);
  recipe.state_bytes = weight.size() * 4;
  recipe.max_length = static_cast<int64_t>(weight.size());
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  TensorValue in = TensorValue::floats(std::vector<float>(weight.size(), 1.0f));
  TensorValue out(executorch::aten::ScalarType::Float, {static_cast<int32_t>(weight.size())}, 4);
  CHECK(delegate.execute({in.value(), out.value()}) == Error::Ok);
  CHECK(out.read() == weight);
}

TEST(cuda_failures_leave_the_delegate_usable) {
  const BlobRecipe recipe = cuda_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  CHECK_VALUES(delegate.run({1, 1}), {1, 2});
  const uint64_t before = device_stats().allocated;
  const auto request = [&](float value) {
    TensorValue in = TensorValue::floats({value, 0}), out(executorch::aten::ScalarType::Float, {8}, 4);
    return delegate.execute({in.value(), out.value()});
  };
  CHECK_ERROR(request(-103), MemoryAllocationFailed, "out of memory on cuda:0");
  CHECK_EQ(device_stats().allocated, before);
  CHECK_ERROR(request(-101), Internal, "running method forward failed");
  CHECK_EQ(device_stats().allocated, before);
  CHECK_VALUES(delegate.run({1, 1}), {2, 4});
  etcuda_reset_state();
  CHECK_VALUES(delegate.run({-105, 1, 2}), {-105, 2, 6});
}

TEST(cuda_out_of_memory_while_loading) {
  BlobRecipe recipe = cuda_recipe();
  const MemoryDataMap small_data(recipe);
  Loaded works(recipe.build(), &small_data);
  const uint64_t before = device_stats().allocated;
  recipe.weight = Bytes(4 << 20, 1);
  const MemoryDataMap data(recipe);
  etcuda_set_memory_limit(1, 0, 1 << 20);
  CHECK_ERROR(Loaded(recipe.build(), &data).error, MemoryAllocationFailed, "limit 1048576");
  etcuda_set_memory_limit(1, 0, 0);
  CHECK_EQ(device_stats().allocated, before);
  CHECK(Loaded(recipe.build(), &data).error == Error::Ok);
  CHECK_VALUES(works.run({1, 1}), {1, 2});
}

TEST(cuda_no_image_for_this_gpu) {
  BlobRecipe recipe = cuda_recipe();
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.images[0]->compute_capability = 80; };
  const MemoryDataMap data(recipe);
  CHECK_ERROR(Loaded(recipe.build(), &data).error, NotSupported, "compute capability 9.0 (sm_90)");
}

TEST(cuda_kernels_that_want_more_shared_memory_than_the_gpu_has) {
  BlobRecipe recipe = cuda_recipe();
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.images[0]->shared_memory = 232449;
    root.images[0]->largest_kernel = "attention_tiled_3";
  };
  const MemoryDataMap data(recipe);
  CHECK_ERROR(Loaded(recipe.build(), &data).error, NotSupported,
              "kernel attention_tiled_3 of the code for sm_90 needs 232449 bytes of shared memory a block");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.images[0]->shared_memory = 232448; };
  CHECK(Loaded(recipe.build(), &data).error == Error::Ok);
}

TEST(cuda_two_hundred_cycles_leave_nothing_behind) {
  const BlobRecipe recipe = cuda_recipe();
  const Bytes blob = recipe.build();
  const MemoryDataMap data(recipe);
  const auto cycle = [&] {
    Loaded delegate(blob, &data);
    CHECK_VALUES(delegate.run({1, 1}), {1, 2});
  };
  for (int i = 0; i < 3; ++i) cycle();
  const Counts before = counts();
  for (int i = 0; i < 200; ++i) cycle();
  const Counts after = counts();
  CHECK_EQ(after.bytes, before.bytes);
  CHECK_EQ(after.streams, before.streams);
  CHECK_EQ(after.events, before.events);
  CHECK_EQ(after.modules, before.modules);
  CHECK_EQ(device_stats().allocated, uint64_t{0});
}
