// Sessions through the public header: state of their own, forks, lifetimes, threads.
#include <thread>

#include "api.h"
#include "session/sessions.h"

using namespace etcuda_test;

TEST(sessions_have_a_state_of_their_own) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session first, second;
  CHECK_VALUES(delegate.run({1, 1}), {1, 2});
  CHECK_VALUES(run_in(first, delegate, {10, 10}), {10, 20});
  CHECK_VALUES(run_in(second, delegate, {5, 5}), {5, 10});
  CHECK_VALUES(run_in(first, delegate, {1, 1}), {11, 22});
  // The stock state is none of theirs, and its reset is not theirs either.
  CHECK_VALUES(delegate.run({1, 1}), {2, 4});
  CHECK_EQ(etcuda_reset_state(), int64_t{1});
  CHECK_VALUES(run_in(second, delegate, {1, 1}), {6, 12});
  CHECK_VALUES(delegate.run({1, 1}), {1, 2});
}

TEST(scopes_nest_and_a_null_one_is_the_stock_state) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session outer, inner;
  const SessionScope in_outer(outer);
  CHECK_VALUES(delegate.run({1}), {1});
  {
    const SessionScope in_inner(inner);
    CHECK_VALUES(delegate.run({7}), {7});
    CHECK_EQ(etcuda_session_enter_stock(), 0);
    CHECK_VALUES(delegate.run({3}), {3});
    CHECK_EQ(etcuda_session_leave(inner.handle()), 0);
    CHECK_EQ(etcuda_session_leave(nullptr), 1);
  }
  CHECK_VALUES(delegate.run({1}), {2});
  std::thread([&] {
    if (delegate.run({1}) != std::vector<float>{4}) std::abort();  // another thread has entered nothing
  }).join();
}

TEST(sessions_start_from_initial_content_and_reset_to_it) {
  BlobRecipe recipe;
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session;
  CHECK(session.reset() == Error::Ok);
  CHECK_VALUES(run_in(session, delegate, {1, 1}), {11, 42});
  CHECK_VALUES(run_in(session, delegate, {1, 1}), {12, 44});
  CHECK(session.reset() == Error::Ok);
  CHECK_VALUES(run_in(session, delegate, {1, 1}), {11, 42});
}

TEST(methods_share_the_state_of_a_session) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded prefill(recipe.build(), &data), decode(recipe.build(), &data);
  Session first, second;
  CHECK_VALUES(run_in(first, prefill, {1}), {1});
  CHECK_VALUES(run_in(second, prefill, {5}), {5});
  CHECK_VALUES(run_in(first, decode, {1}), {2});
  CHECK_VALUES(run_in(second, decode, {1}), {6});
  CHECK_VALUES(run_in(first, prefill, {1}), {3});
}

TEST(a_fork_goes_its_own_way) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session;
  CHECK(session.fork().ok());
  run_in(session, delegate, {1, 1});
  auto copy = session.fork();
  CHECK(copy.ok());
  CHECK_VALUES(run_in(*copy, delegate, {1, 1}), {2, 4});
  CHECK_VALUES(run_in(session, delegate, {5, 5}), {6, 12});
  CHECK_VALUES(run_in(*copy, delegate, {1, 1}), {3, 6});
}

TEST(a_fork_up_to_a_length_has_initial_content_behind_it) {
  BlobRecipe recipe = rows_recipe();
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session;
  run_in(session, delegate, {1, 2, 3, 4, 5, 6, 7, 8});
  const std::vector<float> nothing(8, 0);
  for (const int32_t dim : {1, -1}) {
    auto columns = session.fork(3, {{"ca*", dim}});
    CHECK(columns.ok());
    CHECK_VALUES(run_in(*columns, delegate, nothing), {11, 22, 33, 40, 55, 66, 77, 80});
  }
  CHECK_ERROR(code_of(session.fork(1, {{"other", ETCUDA_WHOLE}, {"cache", 0}})), InvalidArgument,
              "is the first match of 'other'");
  auto rows = session.fork(1, {{"cache", 0}});
  CHECK_VALUES(run_in(*rows, delegate, nothing), {11, 22, 33, 44, 50, 60, 70, 80});
  auto none = session.fork(0, {{"cache", 0}});
  CHECK_VALUES(run_in(*none, delegate, nothing), {10, 20, 30, 40, 50, 60, 70, 80});
  auto whole = session.fork(0, {{"cache", ETCUDA_WHOLE}});
  CHECK_VALUES(run_in(*whole, delegate, nothing), {11, 22, 33, 44, 55, 66, 77, 88});
}

TEST(a_fork_up_to_a_length_that_does_not_fit_is_refused) {
  const BlobRecipe recipe = rows_recipe();
  const MemoryDataMap data(recipe);
  Session session;
  {
    Loaded delegate(recipe.build(), &data);
    run_in(session, delegate, {1});
    CHECK_ERROR(code_of(session.fork(1, {})), InvalidArgument,
                "nothing says which dimension of the state cache");
    CHECK_ERROR(code_of(session.fork(1, {{"cache", 2}})), InvalidArgument,
                "cache is float32 [2, 4]; expected a dimension from -2 to 1, got 2");
    CHECK_ERROR(code_of(session.fork(3, {{"cache", 0}})), InvalidArgument,
                "expected at most 2 positions in dimension 0, got 3");
    CHECK_ERROR(code_of(session.fork(-1, {{"cache", 0}})), InvalidArgument,
                "expected 0 or more positions, got -1");
  }
  // What is to follow was in the program.
  CHECK_ERROR(code_of(session.fork(1, {{"cache", 0}})), InvalidState, "or fork without a length");
  CHECK(session.fork().ok());
}

TEST(a_session_outlives_its_program) {
  const BlobRecipe recipe;
  Session session;
  {
    const MemoryDataMap data(recipe);
    Loaded delegate(recipe.build(), &data);
    run_in(session, delegate, {1, 1});
  }
  const auto saved = session.save();
  CHECK(saved.ok());
  const MemoryDataMap again(recipe);
  Loaded delegate(recipe.build(), &again);
  CHECK_VALUES(run_in(session, delegate, {1, 1}), {2, 4});
  Session other;
  CHECK(other.restore(saved->data(), saved->size()) == Error::Ok);
  CHECK_VALUES(run_in(other, delegate, {2, 2}), {3, 6});
}

TEST(reset_without_the_program_waits_for_it) {
  BlobRecipe recipe;
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  Session session;
  {
    const MemoryDataMap data(recipe);
    Loaded delegate(recipe.build(), &data);
    run_in(session, delegate, {1});
  }
  CHECK(session.reset() == Error::Ok);
  CHECK(session.states()->empty());
  const MemoryDataMap again(recipe);
  Loaded delegate(recipe.build(), &again);
  CHECK_VALUES(run_in(session, delegate, {1}), {11});
}

TEST(memory_goes_with_the_session) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const uint64_t before = allocated();
  {
    Session session;
    CHECK_EQ(allocated(), before);
    run_in(session, delegate, {1});
    CHECK(allocated() > before);
    const auto states = session.states();
    CHECK_EQ(states->size(), size_t{1});
    CHECK_EQ(states->at(0).name, std::string("cache"));
    CHECK_EQ(states->at(0).dtype, 6);
    CHECK(states->at(0).sizes == std::vector<int64_t>{8});
    CHECK_EQ(states->at(0).nbytes, uint64_t{32});
    CHECK_EQ(states->at(0).device_type, 0);
  }
  CHECK_EQ(allocated(), before);
  // The delegate still has the addresses of what is gone, and must not use them.
  CHECK_VALUES(delegate.run({1}), {1});
}

TEST(no_memory_for_a_session_is_an_error_and_no_more) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session;
  etcuda::host_allocator().empty_cache();
  etcuda::host_allocator().set_limit(1);
  TensorValue in = TensorValue::floats({1});
  TensorValue out(executorch::aten::ScalarType::Float, {8}, 4);
  {
    const SessionScope scope(session);
    const Error error = delegate.execute({in.value(), out.value()});
    etcuda::host_allocator().set_limit(0);
    CHECK_ERROR(error, MemoryAllocationFailed, "out of memory on the host");
  }
  CHECK(session.states()->empty());
  CHECK_VALUES(run_in(session, delegate, {1}), {1});
  CHECK_VALUES(delegate.run({2}), {2});
}

TEST(a_session_belongs_to_one_program) {
  const BlobRecipe recipe;
  BlobRecipe other;
  other.weight = bytes_of({2, 2, 2, 2, 2, 2, 2, 2});
  const MemoryDataMap data(recipe), other_data(other);
  Loaded delegate(recipe.build(), &data), stranger(other.build(), &other_data);
  Session session, second;
  CHECK_VALUES(run_in(session, delegate, {1}), {1});
  CHECK_VALUES(run_in(second, stranger, {1}), {2});
  TensorValue in = TensorValue::floats({1});
  TensorValue out(executorch::aten::ScalarType::Float, {8}, 4);
  {
    const SessionScope scope(session);
    CHECK_ERROR(stranger.execute({in.value(), out.value()}), InvalidArgument,
                "Use a session of its own for each program");
  }
  CHECK_VALUES(run_in(session, delegate, {1}), {2});
  CHECK_VALUES(run_in(second, stranger, {1}), {4});
  // The same weights in another export, with another cache.
  const BlobRecipe rows = rows_recipe();
  BlobRecipe flat = rows;
  flat.edit = nullptr;
  const MemoryDataMap rows_data(rows), flat_data(flat);
  Loaded as_rows(rows.build(), &rows_data), as_flat(flat.build(), &flat_data);
  Session third;
  run_in(third, as_rows, {1});
  const SessionScope scope(third);
  CHECK_ERROR(as_flat.execute({in.value(), out.value()}), InvalidArgument,
              "expects float32 [8], the session has float32 [2, 4]");
}

TEST(a_session_that_was_moved_from_says_so) {
  Session session;
  const Session moved = std::move(session);
  CHECK_ERROR(session.reset(), InvalidArgument, "it was moved from");
  CHECK(!SessionScope(session));
  CHECK_EQ(etcuda_session_leave(nullptr), 0);
  CHECK_ERROR(session.save("/tmp/never"), InvalidArgument, "expected a session, got none");
  CHECK(moved.states().ok());
}

TEST(threads_take_turns) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded shared(recipe.build(), &data), other(recipe.build(), &data);
  Session sessions[2];
  Session common;
  // Each thread: its own session on a delegate that both use, and one session on a delegate each.
  const auto work = [&](size_t index) {
    for (int i = 1; i <= 2000; ++i) {
      const float step = index == 0 ? 1.0f : 3.0f;
      if (run_in(sessions[index], shared, {step})[0] != step * static_cast<float>(i)) std::abort();
      run_in(common, index == 0 ? shared : other, {1});
      if (i % 100 == 0 && !sessions[1 - index].fork().ok()) std::abort();
    }
  };
  std::thread first(work, 0), second(work, 1);
  first.join();
  second.join();
  CHECK_VALUES(run_in(common, shared, {0}), {4000});
  CHECK_VALUES(shared.run({1}), {1});
}

TEST(a_session_may_go_while_it_is_entered) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const uint64_t before = allocated();
  auto session = std::make_unique<Session>();
  {
    const SessionScope scope(*session);
    CHECK_VALUES(delegate.run({1}), {1});
    session.reset();
    CHECK_VALUES(delegate.run({1}), {2});
  }
  CHECK_EQ(allocated(), before);
  CHECK_VALUES(delegate.run({5}), {5});
}
