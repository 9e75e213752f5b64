// The sentence behind the last failed call, by thread: etcuda's own, or ExecuTorch's where ExecuTorch refused
// the call itself.
#pragma once

#include <string>

namespace etcuda {

// A call begins: what an earlier one said no longer counts.
void clear_last_error() noexcept;
void set_last_error(const std::string& sentence) noexcept;
// Of this thread; empty if its last call succeeded.
std::string last_reported_error();

// Takes notice of what ExecuTorch logs as an error, for a call that it refuses never reaches the delegate,
// and makes text printable before it reaches the log. May be called again, in case another log was installed
// since.
void watch_executorch_log() noexcept;

// While it exists, what this thread logs is etcuda's own.
class OwnLog {
 public:
  OwnLog() noexcept;
  ~OwnLog();
  OwnLog(const OwnLog&) = delete;
  OwnLog& operator=(const OwnLog&) = delete;
};

}  // namespace etcuda
