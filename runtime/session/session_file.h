// Saved sessions. docs/sessions.md states the bytes.
#pragma once

#include "session/byte_io.h"
#include "session/session_state.h"

namespace etcuda {

// The caller holds the session's mutex.
void save_session(const SessionState& session, ByteSink& sink);

// Throws Failure and leaves the session as it was if the source is damaged, or of another program than the
// session's. The caller holds the session's mutex.
void restore_session(SessionState& session, const ByteSource& source);

}  // namespace etcuda
