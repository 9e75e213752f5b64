#include "session/session_state.h"

#include <atomic>

#include "core/failure.h"
#include "session/transfer.h"

namespace etcuda {
namespace {

std::atomic<uint64_t> last_id{0};

}  // namespace

SessionState::SessionState() : id_(++last_id) {}

void SessionState::check_user(const SessionUser& user) const {
  if (program_ && *program_ != user.program) {
    fail(ErrorCode::InvalidArgument,
         "method %s belongs to a program whose weights have the digest %s, but the session holds state of "
         "one with %s. "
         "Use a session of its own for each program.",
         user.method.c_str(), shortened(user.program).c_str(), shortened(*program_).c_str());
  }
  for (const auto& state : user.states) {
    const auto it = held_.find(state->layout().name);
    if (it == held_.end() || it->second.layout == state->layout()) continue;
    fail(ErrorCode::InvalidArgument,
         "the state %s: method %s expects %s, the session has %s. It was made by another export of the "
         "model: use a "
         "new session.",
         state->layout().name.c_str(), user.method.c_str(), state->layout().describe().c_str(),
         it->second.layout.describe().c_str());
  }
}

std::vector<StoragePtr> SessionState::bind(const SessionUser& user) {
  check_user(user);
  std::map<std::string, HeldState> bound;
  std::vector<StoragePtr> storages;
  Transfer transfer;
  bool is_changed = false;
  for (const auto& state : user.states) {
    const StateLayout& layout = state->layout();
    StoragePtr storage;
    if (const auto it = held_.find(layout.name); it != held_.end()) storage = it->second.storage;
    // A damaged description may name a state twice.
    if (const auto it = bound.find(layout.name); it != bound.end()) storage = it->second.storage;
    if (storage == nullptr || storage->device_type != user.device_type ||
        storage->device_index != user.device_index) {
      const StoragePtr made = allocate_persistent_storage(static_cast<size_t>(layout.nbytes),
                                                          user.device_type, user.device_index);
      if (storage == nullptr) {
        transfer.fill(*made, *state);
      } else {
        transfer.copy(*made, *storage);
      }
      storage = made;
      is_changed = true;
    }
    storages.push_back(storage);
    bound[layout.name] = {layout, std::move(storage), state};
  }
  // From here on nothing throws.
  program_ = user.program;
  if (is_changed) ++version_;
  bound.merge(held_);
  held_ = std::move(bound);
  return storages;
}

void SessionState::reset() {
  Transfer transfer;
  for (auto it = held_.begin(); it != held_.end();) {
    if (const auto source = it->second.source.lock()) {
      transfer.fill(*it->second.storage, *source);
      ++it;
    } else {
      ++version_;
      it = held_.erase(it);
    }
  }
}

void SessionState::replace(std::optional<Digest> program, std::map<std::string, HeldState> held) {
  ++version_;
  if (program) program_ = program;
  held_ = std::move(held);
}

std::vector<EnteredSession>& entered_sessions() {
  thread_local std::vector<EnteredSession> entered;
  return entered;
}

std::shared_ptr<SessionState> current_session() {
  const auto& entered = entered_sessions();
  return entered.empty() ? nullptr : entered.back().state;
}

}  // namespace etcuda
