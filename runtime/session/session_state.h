// What one session owns: a copy of each state that a method has used in it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "weights/pool.h"

namespace etcuda {

struct HeldState {
  StateLayout layout;
  StoragePtr storage;
  std::weak_ptr<State> source;  // has the initial content; expired once no method that uses it is loaded
};

// The methods that use a session, and where they run.
struct SessionUser {
  const std::string& method;
  const Digest& program;
  const std::vector<std::shared_ptr<State>>& states;
  DeviceType device_type;
  int device_index;
};

// The dimension along which the states whose name matches `pattern` (fnmatch) grow; none: copied whole.
struct SequenceDim {
  std::string pattern;
  std::optional<int32_t> dim;  // negative: counted from the last
};

class SessionState {
 public:
  SessionState();
  SessionState(const SessionState&) = delete;
  SessionState& operator=(const SessionState&) = delete;

  // To be held during every call of a method and of the functions below.
  std::mutex& mutex() const { return mutex_; }

  // Never that of another session in this process, nor 0.
  uint64_t id() const { return id_; }
  // Changes whenever bind() would return other storages than before.
  uint64_t version() const { return version_; }
  // None until a method has used the session.
  const std::optional<Digest>& program() const { return program_; }
  const std::map<std::string, HeldState>& held() const { return held_; }

  // The storages of `user.states`, made with their initial content where the session has none, and moved
  // where they are on another device. Throws Failure, and is then as before.
  std::vector<StoragePtr> bind(const SessionUser& user);
  // Initial content. States whose program is unloaded are dropped, which the next bind() makes up for.
  void reset();
  std::shared_ptr<SessionState> fork() const;
  // Copies the first `length` positions of each state along its dimension; what is behind them is initial
  // content.
  std::shared_ptr<SessionState> fork(int64_t length, const std::vector<SequenceDim>& dims) const;
  void replace(std::optional<Digest> program, std::map<std::string, HeldState> held);

 private:
  void check_user(const SessionUser& user) const;
  std::shared_ptr<SessionState> fork_by(const std::vector<SequenceDim>* dims, int64_t length) const;

  const uint64_t id_;
  mutable std::mutex mutex_;
  uint64_t version_ = 1;
  std::optional<Digest> program_;
  std::map<std::string, HeldState> held_;
};

struct EnteredSession {
  const void* handle;  // by which it is left; may be gone
  std::shared_ptr<SessionState> state;
};
// What this thread has entered, the innermost last; null stands for the stock state.
std::vector<EnteredSession>& entered_sessions();
// The innermost one; null: the stock state.
std::shared_ptr<SessionState> current_session();

}  // namespace etcuda
