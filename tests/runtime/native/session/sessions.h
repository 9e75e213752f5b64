// What the tests of sessions share.
#pragma once

#include <etcuda/session.h>

#include "memory/allocator.h"
#include "program.h"

namespace etcuda_test {

using etcuda::Session;
using etcuda::SessionScope;

inline std::vector<float> run_in(const Session& session, Loaded& delegate, const std::vector<float>& x) {
  const SessionScope scope(session);
  return delegate.run(x);
}

// The state as two rows of four.
inline BlobRecipe rows_recipe() {
  BlobRecipe recipe;
  recipe.weight = bytes_of({1, 1, 1, 1, 1, 1, 1, 1});
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.constants[1]->sizes = {2, 4};
    root.constants[1]->strides = {4, 1};
  };
  return recipe;
}

inline uint64_t allocated() {
  return etcuda::host_allocator().stats().allocated;
}

inline Error code_of(const Session::Result<Session>& result) {
  return result.ok() ? Error::Ok : result.error();
}

}  // namespace etcuda_test
