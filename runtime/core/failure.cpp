#include "core/failure.h"

#include <executorch/runtime/platform/log.h>

#include <cstdio>

#include "core/last_error.h"
#include "core/text.h"

namespace etcuda {
namespace {

std::string vformat(const char* pattern, va_list arguments) {
  va_list measure;
  va_copy(measure, arguments);
  const int length = std::vsnprintf(nullptr, 0, pattern, measure);
  va_end(measure);
  if (length < 0) return pattern;
  std::string text(static_cast<size_t>(length), '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, arguments);
  return text;
}

thread_local ShimError shim_error;

// ExecuTorch cuts a log entry at 255 characters; longer messages take several.
constexpr size_t kLogLength = 200;

template <typename Log>
void in_pieces(const std::string& message, const Log& log) {
  const OwnLog own;
  size_t start = 0;
  while (message.size() - start > kLogLength) {
    size_t end = message.rfind(' ', start + kLogLength);
    if (end == std::string::npos || end <= start)
      end = start + whole_characters(std::string_view(message).substr(start), kLogLength);
    log(static_cast<int>(end - start), message.c_str() + start);
    start = message[end] == ' ' ? end + 1 : end;
  }
  log(static_cast<int>(message.size() - start), message.c_str() + start);
}

}  // namespace

std::string format(const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = vformat(pattern, arguments);
  va_end(arguments);
  return text;
}

void fail(ErrorCode code, const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = vformat(pattern, arguments);
  va_end(arguments);
  throw Failure(code, text);
}

void set_shim_error(ErrorCode code, const char* message) noexcept {
  try {
    // The first failure is the cause; what follows while the image unwinds is not.
    if (shim_error.message.empty()) shim_error = ShimError{code, message};
  } catch (const std::bad_alloc&) {
    // Without memory for the reason, the code alone is reported.
    shim_error.code = code;
  }
}

ShimError take_shim_error() noexcept {
  ShimError taken = std::move(shim_error);
  shim_error = ShimError{};
  return taken;
}

void report_error(const std::string& message) noexcept {
  try {
    const std::string shown = printable(message);
    in_pieces(shown, [](int length, const char* text) { ET_LOG(Error, "etcuda: %.*s", length, text); });
    set_last_error(shown);
  } catch (const std::bad_alloc&) {
    clear_last_error();
    ET_LOG(Error, "etcuda: out of host memory: the message of a failure is lost");
  }
}

void report_warning(const std::string& message) noexcept {
  try {
    in_pieces(printable(message),
              [](int length, const char* text) { ET_LOG(Info, "etcuda: %.*s", length, text); });
  } catch (const std::bad_alloc&) {
    ET_LOG(Info, "etcuda: out of host memory: a message is lost");
  }
}

}  // namespace etcuda
