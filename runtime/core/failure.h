// The one exception type of the runtime, and the boundary that turns it into a status.
#pragma once

#include <executorch/runtime/core/error.h>

#include <cstdarg>
#include <stdexcept>
#include <string>

namespace etcuda {

using ErrorCode = ::executorch::runtime::Error;

// Says what is wrong, what was expected, what was got and what to do. Never leaves this library.
class Failure : public std::runtime_error {
 public:
  Failure(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

[[noreturn]] void fail(ErrorCode code, const char* pattern, ...) __attribute__((format(printf, 2, 3)));

// The reason of the last failure on this thread. A code image only reports that a shim failed, not why.
struct ShimError {
  ErrorCode code = ErrorCode::Internal;
  std::string message;  // empty: none
};
void set_shim_error(ErrorCode code, const char* message) noexcept;
ShimError take_shim_error() noexcept;

// To the log, in printable characters. An error is what last_reported_error() says from now on.
void report_error(const std::string& message) noexcept;
void report_warning(const std::string& message) noexcept;

}  // namespace etcuda
