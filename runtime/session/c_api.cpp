// The C interface of sessions. Nothing thrown in this library passes beyond this file.
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/failure.h"
#include "core/last_error.h"
#include "core/text.h"
#include "etcuda/session.h"
#include "session/session_file.h"
#include "session/session_state.h"

struct EtcudaSession {
  std::shared_ptr<etcuda::SessionState> state;
};

namespace etcuda {
namespace {

// The reason is not logged: Python's log must not be written to by a thread that does not hold the
// interpreter.
int32_t failed(ErrorCode code, const std::string& reason) noexcept {
  try {
    set_last_error(printable(reason));
  } catch (const std::bad_alloc&) {
    clear_last_error();
  }
  return static_cast<int32_t>(code);
}

template <typename Body>
int32_t reported(const Body& body) noexcept {
  clear_last_error();
  try {
    body();
    return 0;
  } catch (const Failure& failure) {
    return failed(failure.code(), failure.what());
  } catch (const std::bad_alloc&) {
    return failed(ErrorCode::MemoryAllocationFailed, "out of host memory. Free sessions or unload models.");
  } catch (const std::exception& error) {
    return failed(ErrorCode::Internal, error.what());
  }
}

SessionState& require(EtcudaSession* session) {
  if (session == nullptr) {
    fail(ErrorCode::InvalidArgument,
         "expected a session, got none: it was moved from, or there was no memory for it. Make a new one.");
  }
  return *session->state;
}

void require_pointer(const void* pointer, const char* what) {
  if (pointer == nullptr) fail(ErrorCode::InvalidArgument, "expected %s, got a null pointer.", what);
}

// Runs `body` on the session while no method and no other function uses it.
template <typename Body>
int32_t with_session(EtcudaSession* session, const Body& body) noexcept {
  return reported([&] {
    SessionState& state = require(session);
    const std::lock_guard<std::mutex> lock(state.mutex());
    body(state);
  });
}

// States, then their sizes, then their names.
EtcudaSessionState* described(const SessionState& session) {
  const auto& held = session.held();
  size_t nbytes = held.size() * sizeof(EtcudaSessionState);
  for (const auto& [name, state] : held)
    nbytes += state.layout.sizes.size() * sizeof(int64_t) + name.size() + 1;
  auto* block = static_cast<EtcudaSessionState*>(std::malloc(nbytes + 1));
  if (block == nullptr) throw std::bad_alloc();
  auto* sizes = reinterpret_cast<int64_t*>(block + held.size());
  size_t total = 0;
  for (const auto& entry : held) total += entry.second.layout.sizes.size();
  auto* text = reinterpret_cast<char*>(sizes + total);
  EtcudaSessionState* next = block;
  for (const auto& [name, state] : held) {
    const auto& shape = state.layout.sizes;
    *next++ = {text,
               state.layout.dtype,
               static_cast<int32_t>(shape.size()),
               sizes,
               state.layout.nbytes,
               state.storage->device_type,
               state.storage->device_index};
    std::copy(shape.begin(), shape.end(), sizes);
    sizes += shape.size();
    std::memcpy(text, name.c_str(), name.size() + 1);
    text += name.size() + 1;
  }
  return block;
}

}  // namespace
}  // namespace etcuda

using namespace etcuda;  // NOLINT: the functions below are all of this library

int32_t etcuda_session_create(EtcudaSession** session) {
  return reported([&] {
    require_pointer(session, "where to put the session");
    *session = new EtcudaSession{std::make_shared<SessionState>()};
  });
}

void etcuda_session_destroy(EtcudaSession* session) {
  delete session;
}

int32_t etcuda_session_enter(EtcudaSession* session) {
  return reported([&] {
    require(session);
    entered_sessions().push_back({session, session->state});
  });
}

int32_t etcuda_session_enter_stock(void) {
  return reported([] { entered_sessions().push_back({nullptr, nullptr}); });
}

int etcuda_session_leave(EtcudaSession* session) {
  auto& entered = entered_sessions();
  if (entered.empty() || entered.back().handle != session) return 0;
  entered.pop_back();
  return 1;
}

int32_t etcuda_session_reset(EtcudaSession* session) {
  return with_session(session, [](SessionState& state) { state.reset(); });
}

int32_t etcuda_session_fork(EtcudaSession* session, EtcudaSession** copy) {
  return with_session(session, [&](SessionState& state) {
    require_pointer(copy, "where to put the copy");
    *copy = new EtcudaSession{state.fork()};
  });
}

int32_t etcuda_session_fork_to(EtcudaSession* session, int64_t length, const char* const* patterns,
                               const int32_t* dims, size_t count, EtcudaSession** copy) {
  return with_session(session, [&](SessionState& state) {
    require_pointer(copy, "where to put the copy");
    std::vector<SequenceDim> rules;
    for (size_t i = 0; i < count; ++i) {
      require_pointer(patterns[i], "a pattern");
      rules.push_back(
          {patterns[i], dims[i] == ETCUDA_WHOLE ? std::nullopt : std::optional<int32_t>(dims[i])});
    }
    *copy = new EtcudaSession{state.fork(length, rules)};
  });
}

int32_t etcuda_session_save(EtcudaSession* session, const char* path) {
  return with_session(session, [&](SessionState& state) {
    require_pointer(path, "a path");
    FileSink sink(path);
    save_session(state, sink);
    sink.finish();
  });
}

int32_t etcuda_session_save_bytes(EtcudaSession* session, uint8_t** data, size_t* nbytes) {
  return with_session(session, [&](SessionState& state) {
    require_pointer(data, "where to put the bytes");
    require_pointer(nbytes, "where to put their number");
    MemorySink sink;
    save_session(state, sink);
    *nbytes = sink.size();
    *data = sink.release();
  });
}

int32_t etcuda_session_restore(EtcudaSession* session, const char* path) {
  return with_session(session, [&](SessionState& state) {
    require_pointer(path, "a path");
    restore_session(state, FileSource(path));
  });
}

int32_t etcuda_session_restore_bytes(EtcudaSession* session, const void* data, size_t nbytes) {
  return with_session(session, [&](SessionState& state) {
    if (nbytes != 0) require_pointer(data, "the bytes of a saved session");
    restore_session(state, MemorySource(data, nbytes));
  });
}

int32_t etcuda_session_states(EtcudaSession* session, EtcudaSessionState** states, size_t* count) {
  return with_session(session, [&](SessionState& state) {
    require_pointer(states, "where to put the states");
    require_pointer(count, "where to put their number");
    *states = described(state);
    *count = state.held().size();
  });
}

void etcuda_free(void* block) {
  std::free(block);
}

void etcuda_log_last_error(void) {
  try {
    report_error(last_reported_error());
  } catch (const std::bad_alloc&) {
    report_error("");
  }
}
