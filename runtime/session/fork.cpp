// Copies of a session, whole or up to a length.
#include <fnmatch.h>

#include <cinttypes>

#include "core/failure.h"
#include "session/session_state.h"
#include "session/transfer.h"

namespace etcuda {
namespace {

// Which entry of `dims` says what a state's dimension is: the first that matches.
size_t find_rule(const std::vector<SequenceDim>& dims, const std::string& name) {
  for (size_t i = 0; i < dims.size(); ++i) {
    if (fnmatch(dims[i].pattern.c_str(), name.c_str(), 0) == 0) return i;
  }
  fail(ErrorCode::InvalidArgument,
       "fork up to a length: nothing says which dimension of the state %s grows. Name it, or a pattern that "
       "it "
       "matches, with the dimension, or without one to copy it whole.",
       name.c_str());
}

size_t checked_dim(const StateLayout& layout, int32_t dim, int64_t length) {
  const auto rank = static_cast<int32_t>(layout.sizes.size());
  if (dim < -rank || dim >= rank) {
    fail(ErrorCode::InvalidArgument,
         "fork up to a length: the state %s is %s; expected a dimension from %d to %d, got %d.",
         layout.name.c_str(), layout.describe().c_str(), -rank, rank - 1, dim);
  }
  const auto place = static_cast<size_t>(dim < 0 ? dim + rank : dim);
  if (length > layout.sizes[place]) {
    fail(ErrorCode::InvalidArgument,
         "fork up to a length: the state %s is %s; expected at most %" PRId64
         " positions in dimension %zu, got %" PRId64 ".",
         layout.name.c_str(), layout.describe().c_str(), layout.sizes[place], place, length);
  }
  return place;
}

std::unique_ptr<Tensor> first_positions(const StateLayout& layout, const StoragePtr& storage, size_t dim,
                                        int64_t length) {
  std::vector<int64_t> sizes = layout.sizes;
  sizes[dim] = length;
  return make_view(storage, static_cast<int64_t>(sizes.size()), sizes.data(), layout.strides.data(), 0,
                   layout.dtype);
}

void copy_start(Transfer& transfer, const HeldState& from, const StoragePtr& to, size_t dim, int64_t length) {
  const auto source = from.source.lock();
  if (source == nullptr) {
    fail(ErrorCode::InvalidState,
         "fork up to a length: the initial content of the state %s, which is to follow, is in the program, "
         "and no "
         "method that uses it has run in the session since it was made or restored, or none is loaded any "
         "more. Run "
         "one, or fork without a length.",
         from.layout.name.c_str());
  }
  transfer.fill(*to, *source);
  transfer.copy_view(*first_positions(from.layout, to, dim, length),
                     *first_positions(from.layout, from.storage, dim, length));
}

}  // namespace

std::shared_ptr<SessionState> SessionState::fork() const {
  return fork_by(nullptr, 0);
}

std::shared_ptr<SessionState> SessionState::fork(int64_t length, const std::vector<SequenceDim>& dims) const {
  if (length < 0) {
    fail(ErrorCode::InvalidArgument, "fork up to a length: expected 0 or more positions, got %" PRId64 ".",
         length);
  }
  return fork_by(&dims, length);
}

std::shared_ptr<SessionState> SessionState::fork_by(const std::vector<SequenceDim>* dims,
                                                    int64_t length) const {
  auto copy = std::make_shared<SessionState>();
  copy->program_ = program_;
  Transfer transfer;
  std::vector<bool> is_used(dims == nullptr ? 0 : dims->size());
  for (const auto& [name, from] : held_) {
    const StoragePtr storage = Transfer::allocate_like(*from.storage);
    std::optional<int32_t> dim;
    if (dims != nullptr) {
      const size_t rule = find_rule(*dims, name);
      is_used[rule] = true;
      dim = (*dims)[rule].dim;
    }
    if (dim) {
      copy_start(transfer, from, storage, checked_dim(from.layout, *dim, length), length);
    } else {
      transfer.copy(*storage, *from.storage);
    }
    copy->held_[name] = {from.layout, storage, from.source};
  }
  for (size_t i = 0; i < is_used.size() && !held_.empty(); ++i) {
    if (is_used[i]) continue;
    fail(ErrorCode::InvalidArgument,
         "fork up to a length: no state of the session is the first match of '%s'. Correct the name or leave "
         "it out.",
         (*dims)[i].pattern.c_str());
  }
  return copy;
}

}  // namespace etcuda
