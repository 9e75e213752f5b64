// Sessions: several states over one set of weights.
//
// A method that runs while a session is entered uses the session's copy of every mutable buffer (a KV cache,
// a counter) instead of the one that ExecuTorch's own interface has. Weights and code are shared.
//
//     etcuda::Session chat;
//     {
//       const etcuda::SessionScope scope(chat);
//       module.execute("prefill", tokens);
//     }
//     auto branch = chat.fork();                    // Result<Session>: a copy that goes its own way
//     if (chat.save("chat.session") != Error::Ok)   // the log says why
//
// A session belongs to the program of the first method that used its state, and may outlive it: the state is
// kept, and can be used with the same program when it is loaded again. Memory is taken when a method first
// uses a state, and freed with the session. Functions may be called from any thread; a call of a method holds
// the session, so that others in the same session wait for it. None throws.
//
// Link libetcuda_runtime.so. The functions with C linkage are what other languages bind to.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define ETCUDA_SESSION_API __attribute__((visibility("default")))
// As a dimension: the state is copied whole.
#define ETCUDA_WHOLE INT32_MIN

#if defined(__cplusplus)
extern "C" {
#endif

typedef struct EtcudaSession EtcudaSession;

struct EtcudaSessionState {
  const char* name;
  int32_t dtype;  // c10::ScalarType
  int32_t rank;
  const int64_t* sizes;
  uint64_t nbytes;
  int32_t device_type;  // 0 host, 1 cuda
  int32_t device_index;
};

// All but destroy, leave, free and log return an executorch::runtime::Error; if it is not 0,
// etcuda_last_error() says why and nothing has changed.
ETCUDA_SESSION_API int32_t etcuda_session_create(EtcudaSession** session);
ETCUDA_SESSION_API void etcuda_session_destroy(EtcudaSession* session);
// From now on methods that this thread runs use the session, which may be destroyed meanwhile. To be undone
// by etcuda_session_leave() on the same thread, innermost first.
ETCUDA_SESSION_API int32_t etcuda_session_enter(EtcudaSession* session);
// The same with the state of ExecuTorch's own interface, which is left as a null session.
ETCUDA_SESSION_API int32_t etcuda_session_enter_stock(void);
// Returns 0 if `session` is not the one that this thread entered last.
ETCUDA_SESSION_API int etcuda_session_leave(EtcudaSession* session);
ETCUDA_SESSION_API int32_t etcuda_session_reset(EtcudaSession* session);
ETCUDA_SESSION_API int32_t etcuda_session_fork(EtcudaSession* session, EtcudaSession** copy);
// Copies the first `length` positions of each state along the dimension of the first of `count` patterns
// (fnmatch) that its name matches, or the whole of it where that is ETCUDA_WHOLE. What is behind is initial
// content.
ETCUDA_SESSION_API int32_t etcuda_session_fork_to(EtcudaSession* session, int64_t length,
                                                  const char* const* patterns, const int32_t* dims,
                                                  size_t count, EtcudaSession** copy);
ETCUDA_SESSION_API int32_t etcuda_session_save(EtcudaSession* session, const char* path);
// As above, to memory that etcuda_free() frees.
ETCUDA_SESSION_API int32_t etcuda_session_save_bytes(EtcudaSession* session, uint8_t** data, size_t* nbytes);
ETCUDA_SESSION_API int32_t etcuda_session_restore(EtcudaSession* session, const char* path);
ETCUDA_SESSION_API int32_t etcuda_session_restore_bytes(EtcudaSession* session, const void* data,
                                                        size_t nbytes);
// The states that the session holds, sorted by name, in one block that etcuda_free() frees.
ETCUDA_SESSION_API int32_t etcuda_session_states(EtcudaSession* session, struct EtcudaSessionState** states,
                                                 size_t* count);
ETCUDA_SESSION_API void etcuda_free(void* block);
// Logs what etcuda_last_error() says, which the functions above do not.
ETCUDA_SESSION_API void etcuda_log_last_error(void);

#if defined(__cplusplus)
}

#include <executorch/runtime/core/error.h>
#include <executorch/runtime/core/result.h>

#include <string>
#include <utility>
#include <vector>

namespace etcuda {

class Session {
 public:
  using Error = ::executorch::runtime::Error;
  template <typename T>
  using Result = ::executorch::runtime::Result<T>;

  // One state of a session.
  struct State {
    std::string name;
    int32_t dtype;  // c10::ScalarType
    std::vector<int64_t> sizes;
    uint64_t nbytes;
    int32_t device_type;  // 0 host, 1 cuda
    int32_t device_index;
  };
  // Along which dimension the states grow whose name matches a pattern (fnmatch). Negative: from the last one
  // on.
  struct SequenceDim {
    std::string pattern;
    int32_t dim = ETCUDA_WHOLE;
  };

  // Initial content. Without memory for it, every function returns Error::InvalidArgument.
  Session() {
    if (as_error(etcuda_session_create(&handle_)) != Error::Ok) handle_ = nullptr;
  }
  ~Session() { etcuda_session_destroy(handle_); }
  Session(Session&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Session& operator=(Session&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Puts back the initial content.
  Error reset() { return as_error(etcuda_session_reset(handle_)); }

  // A new session with a copy of the state.
  Result<Session> fork() const {
    EtcudaSession* copy = nullptr;
    const int32_t code = etcuda_session_fork(handle_, &copy);
    return made(code, copy);
  }
  // The same with the first `length` positions alone, and initial content behind them.
  Result<Session> fork(int64_t length, const std::vector<SequenceDim>& dims) const {
    std::vector<const char*> patterns;
    std::vector<int32_t> numbers;
    for (const SequenceDim& each : dims) {
      patterns.push_back(each.pattern.c_str());
      numbers.push_back(each.dim);
    }
    EtcudaSession* copy = nullptr;
    const int32_t code =
        etcuda_session_fork_to(handle_, length, patterns.data(), numbers.data(), dims.size(), &copy);
    return made(code, copy);
  }

  // The file is replaced whole or not at all.
  Error save(const std::string& path) const { return as_error(etcuda_session_save(handle_, path.c_str())); }
  Result<std::vector<uint8_t>> save() const {
    uint8_t* data = nullptr;
    size_t nbytes = 0;
    const Error error = as_error(etcuda_session_save_bytes(handle_, &data, &nbytes));
    if (error != Error::Ok) return error;
    std::vector<uint8_t> bytes(data, data + nbytes);
    etcuda_free(data);
    return bytes;
  }
  // What is damaged, or another program's, is refused and changes nothing.
  Error restore(const std::string& path) { return as_error(etcuda_session_restore(handle_, path.c_str())); }
  Error restore(const void* data, size_t nbytes) {
    return as_error(etcuda_session_restore_bytes(handle_, data, nbytes));
  }

  // The states that the session holds: those that a method has used in it, or that were restored.
  Result<std::vector<State>> states() const {
    EtcudaSessionState* block = nullptr;
    size_t count = 0;
    const Error error = as_error(etcuda_session_states(handle_, &block, &count));
    if (error != Error::Ok) return error;
    std::vector<State> all;
    for (size_t i = 0; i < count; ++i) {
      const EtcudaSessionState& state = block[i];
      all.push_back({state.name,
                     state.dtype,
                     {state.sizes, state.sizes + state.rank},
                     state.nbytes,
                     state.device_type,
                     state.device_index});
    }
    etcuda_free(block);
    return all;
  }

  EtcudaSession* handle() const { return handle_; }

 private:
  explicit Session(EtcudaSession* handle) : handle_(handle) {}
  static Error as_error(int32_t code) {
    if (code != 0) etcuda_log_last_error();
    return static_cast<Error>(code);
  }
  static Result<Session> made(int32_t code, EtcudaSession* handle) {
    if (code != 0) return as_error(code);
    return Session(handle);
  }

  EtcudaSession* handle_ = nullptr;
};

// Methods that this thread runs while it exists use the session's state. False if the session could not be
// entered, since it was moved from or memory ran out: methods then use what they would without it.
class SessionScope {
 public:
  explicit SessionScope(const Session& session)
      : handle_(session.handle()), entered_(etcuda_session_enter(handle_) == 0) {
    if (!entered_) etcuda_log_last_error();
  }
  ~SessionScope() {
    if (entered_) etcuda_session_leave(handle_);
  }
  SessionScope(const SessionScope&) = delete;
  SessionScope& operator=(const SessionScope&) = delete;

  explicit operator bool() const { return entered_; }

 private:
  EtcudaSession* const handle_;
  const bool entered_;
};

}  // namespace etcuda
#endif
