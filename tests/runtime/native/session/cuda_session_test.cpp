// Sessions on a GPU, with the fake driver.
#include "session/sessions.h"

using namespace etcuda_test;

TEST(cuda_sessions_have_a_state_of_their_own) {
  BlobRecipe recipe = cuda_recipe();
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const uint64_t before = etcuda::cuda_allocator(0).stats().allocated;
  {
    Session first, second;
    CHECK_VALUES(run_in(first, delegate, {1, 1}), {11, 42});
    CHECK_VALUES(run_in(second, delegate, {5, 5}), {15, 50});
    CHECK_VALUES(run_in(first, delegate, {1, 1}), {12, 44});
    CHECK_VALUES(delegate.run({1, 1}), {11, 42});
    const auto states = first.states();
    CHECK_EQ(states->at(0).device_type, 1);
    CHECK(first.reset() == Error::Ok);
    CHECK_VALUES(run_in(first, delegate, {1, 1}), {11, 42});
    auto copy = second.fork(1, {{"cache", 0}});
    CHECK_VALUES(run_in(*copy, delegate, {1, 1}), {16, 42});
    auto whole = second.fork();
    CHECK_VALUES(run_in(*whole, delegate, {1, 1}), {16, 52});
  }
  CHECK_EQ(etcuda::cuda_allocator(0).stats().allocated, before);
  CHECK_VALUES(delegate.run({1, 1}), {12, 44});
}

TEST(cuda_sessions_are_saved_and_move_between_host_and_gpu) {
  const BlobRecipe recipe = cuda_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session, copy;
  run_in(session, delegate, {1, 2});
  const auto saved = session.save();
  CHECK(copy.restore(saved->data(), saved->size()) == Error::Ok);
  // On the host until a method needs it.
  CHECK_EQ(copy.states()->at(0).device_type, 0);
  CHECK_VALUES(run_in(copy, delegate, {1, 1}), {2, 6});
  CHECK_EQ(copy.states()->at(0).device_type, 1);
  CHECK(copy.restore(saved->data(), saved->size()) == Error::Ok);
  CHECK_EQ(copy.states()->at(0).device_type, 1);
  CHECK_VALUES(run_in(copy, delegate, {1, 1}), {2, 6});
  // The same weights and state in a program for the host.
  const BlobRecipe on_host;
  const MemoryDataMap host_data(on_host);
  Loaded host(on_host.build(), &host_data);
  CHECK_VALUES(run_in(copy, host, {1, 1}), {3, 8});
  CHECK_VALUES(run_in(copy, delegate, {1, 1}), {4, 10});
}
