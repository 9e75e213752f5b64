// Saved sessions: round trips, damage, other programs, files that are replaced.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "session/sessions.h"

using namespace etcuda_test;

namespace {

std::string temporary_path(const char* name) {
  return "/tmp/etcuda_" + std::to_string(getpid()) + "_" + name;
}

}  // namespace

TEST(saved_sessions_are_restored) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session, copy;
  run_in(session, delegate, {1, 2, 3, 4, 5, 6, 7, 8});
  const std::string path = temporary_path("session");
  CHECK(session.save(path) == Error::Ok);
  run_in(session, delegate, {1, 1, 1});
  CHECK(copy.restore(path) == Error::Ok);
  CHECK_VALUES(run_in(copy, delegate, {1, 1}), {2, 6});
  CHECK(session.restore(path) == Error::Ok);
  CHECK_VALUES(run_in(session, delegate, {0, 0}), {1, 4});
  // An empty one is initial content.
  CHECK(Session().save(path) == Error::Ok);
  CHECK(session.restore(path) == Error::Ok);
  CHECK_VALUES(run_in(session, delegate, {1, 1}), {1, 2});
  std::remove(path.c_str());
}

TEST(saving_replaces_the_file_or_leaves_it) {
  const Session session;
  const std::string path = temporary_path("replaced"), link = temporary_path("link");
  CHECK(session.save(path) == Error::Ok);
  CHECK_EQ(chmod(path.c_str(), 0600), 0);
  CHECK_EQ(symlink(path.c_str(), link.c_str()), 0);
  CHECK(session.save(link) == Error::Ok);
  struct stat status{};
  CHECK_EQ(lstat(link.c_str(), &status), 0);
  CHECK(S_ISLNK(status.st_mode));
  CHECK_EQ(stat(path.c_str(), &status), 0);
  CHECK_EQ(status.st_mode & 0777, 0600u);
  std::remove(link.c_str());
  std::remove(path.c_str());
  CHECK_ERROR(session.save("/no/such/folder/file"), AccessFailed, "Check that the folder exists");
  CHECK_ERROR(session.save("/tmp"), AccessFailed, "expected the path of a file");
  CHECK_ERROR(session.save("/dev/full"), AccessFailed, "expected the path of a file");
}

TEST(damaged_sessions_change_nothing) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session session;
  run_in(session, delegate, {1, 2, 3, 4, 5, 6, 7, 8});
  const auto whole = session.save();
  const uint64_t before = allocated();
  Session target;
  run_in(target, delegate, {9});
  for (size_t i = 0; i < whole->size(); ++i) {
    for (const uint8_t flip : {0x01, 0x80}) {
      Bytes damaged = *whole;
      damaged[i] ^= flip;
      const Error error = target.restore(damaged.data(), damaged.size());
      if (error == Error::Ok) fail_check(__FILE__, __LINE__, "byte " + std::to_string(i) + " is not noticed");
      CHECK_ERROR(error, InvalidExternalData, "The session is what it was");
    }
    CHECK_ERROR(target.restore(whole->data(), i), InvalidExternalData, "is no saved session or is damaged");
  }
  Bytes longer = *whole;
  longer.push_back(0);
  CHECK_ERROR(target.restore(longer.data(), longer.size()), InvalidExternalData,
              "it is cut, or something was added");
  CHECK_ERROR(target.restore(nullptr, 0), InvalidExternalData, "got 0");
  CHECK_ERROR(target.restore("/no/such/file"), AccessFailed, "No such file");
  CHECK_ERROR(target.restore("/tmp"), AccessFailed, "it is no file");
  CHECK_VALUES(run_in(target, delegate, {1}), {10});
  CHECK(allocated() <= before + 64);
  CHECK(target.restore(whole->data(), whole->size()) == Error::Ok);
}

TEST(another_programs_session_is_refused) {
  const BlobRecipe recipe;
  BlobRecipe other;
  other.weight = bytes_of({2, 2, 2, 2, 2, 2, 2, 2});
  const BlobRecipe rows = rows_recipe();
  BlobRecipe flat = rows;
  flat.edit = nullptr;
  const MemoryDataMap data(recipe), other_data(other), rows_data(rows), flat_data(flat);
  Loaded delegate(recipe.build(), &data), stranger(other.build(), &other_data);
  Loaded as_rows(rows.build(), &rows_data), as_flat(flat.build(), &flat_data);
  Session session, second, third, fourth, fresh;
  run_in(session, delegate, {1});
  run_in(second, stranger, {1});
  run_in(third, as_rows, {1});
  run_in(fourth, as_flat, {1});
  const auto saved = second.save(), saved_rows = third.save();
  CHECK_ERROR(session.restore(saved->data(), saved->size()), InvalidArgument,
              "was saved with another program");
  CHECK_ERROR(fourth.restore(saved_rows->data(), saved_rows->size()), InvalidArgument,
              "the state cache is float32 [2, 4] there and float32 [8] here");
  CHECK_VALUES(run_in(session, delegate, {1}), {2});
  CHECK_VALUES(run_in(fourth, as_flat, {1}), {2});
  // A session that belongs to no program yet takes it, and belongs to that program.
  CHECK(fresh.restore(saved->data(), saved->size()) == Error::Ok);
  CHECK_VALUES(run_in(fresh, stranger, {1}), {4});
  TensorValue in = TensorValue::floats({1});
  TensorValue out(executorch::aten::ScalarType::Float, {8}, 4);
  const SessionScope scope(fresh);
  CHECK_ERROR(delegate.execute({in.value(), out.value()}), InvalidArgument, "Use a session of its own");
}
