#include "core/last_error.h"

#include <executorch/runtime/platform/platform.h>

#include <atomic>
#include <cstring>
#include <new>

#include "core/text.h"

namespace etcuda {
namespace {

using Emit = ::pal_emit_log_message_method;

// Has no destructor, so that it can be read while the thread's other variables go away.
thread_local bool forgotten = false;
thread_local int own_logs = 0;
thread_local int emitting = 0;

struct LastError {
  std::string sentence;
  std::string missing;       // operators that a method calls and nobody has, joined by commas
  bool is_followed = false;  // ExecuTorch has logged the code that the failed call returned
  ~LastError() { forgotten = true; }
};

LastError& last_error() {
  thread_local LastError error;
  return error;
}

void set(const std::string& sentence) noexcept {
  if (forgotten) return;
  try {
    last_error().sentence = sentence;
    last_error().missing.clear();
  } catch (const std::bad_alloc&) {
    last_error().sentence.clear();
  }
  last_error().is_followed = false;
}

// Whether an entry of ExecuTorch's ends with an error code and so says no more than that a call failed, such
// as "CALL_DELEGATE execute failed at instruction 0: 0x12".
bool is_code(const std::string& entry) {
  const size_t start = entry.rfind("0x");
  return start != std::string::npos && start + 2 < entry.size() &&
         entry.find_first_not_of("0123456789abcdefABCDEF", start + 2) == std::string::npos;
}

// Whether an entry is one of those that ExecuTorch logs for each argument of a kernel that failed.
bool is_argument(const std::string& entry) {
  return entry.compare(0, 4, "arg ") == 0 && entry.find(" with type id ") != std::string::npos;
}

// The operator of an entry such as "Missing operator: [0] aten::avg_pool3d.out", else nothing. ExecuTorch
// logs one for each when it loads a method, and then how many there were.
std::string missing_operator(const std::string& entry) {
  static const std::string start = "Missing operator: [";
  const size_t end = entry.rfind("] ");
  return entry.compare(0, start.size(), start) == 0 && end != std::string::npos ? entry.substr(end + 2) : "";
}

// Export warns with the same words, in partitioner/stock_kernels.py.
void add_missing(LastError& last, const std::string& name) {
  const std::string known = ", " + last.missing + ", ";
  if (known.find(", " + name + ", ") == std::string::npos)
    last.missing += (last.missing.empty() ? "" : ", ") + name;
  last.sentence =
      "no delegate computes " + last.missing +
      ", and the runtime has no kernel for that. Let another partitioner take it, write the model "
      "without it, or register a kernel for it before the program is loaded.";
  last.is_followed = false;
}

void note(const std::string& entry, const char* file) {
  if (forgotten) return;
  LastError& last = last_error();
  // Details between two missing operators: the arguments that the first was called with.
  if (!last.missing.empty() && file != nullptr && std::strstr(file, "operator_registry") != nullptr) return;
  const bool is_count = entry.compare(0, 10, "There are ") == 0;
  if (is_count && !last.missing.empty()) {
    last.missing.clear();  // the next one is of another method
    return;
  }
  const std::string missing = missing_operator(entry);
  if (!missing.empty()) {
    add_missing(last, missing);
    return;
  }
  if (last.is_followed && is_argument(entry)) return;
  if (!last.sentence.empty() && !last.is_followed && is_code(entry)) {
    last.is_followed = true;
  } else {
    set(entry);
  }
}

std::atomic<Emit> first_emit{nullptr};
std::atomic<Emit> next_emit{nullptr};

struct Emitting {
  Emitting() { ++emitting; }
  ~Emitting() { --emitting; }
};

void emit(et_timestamp_t timestamp, et_pal_log_level_t level, const char* file, const char* function,
          size_t line, const char* message, size_t length) {
  // A log that was installed later and passes entries on may pass them to this function again.
  const Emit next = emitting == 0 ? next_emit.load() : first_emit.load();
  const Emitting scope;
  try {
    const std::string entry = printable({message, length});
    if (emitting == 1 && own_logs == 0 && (level == kError || level == kFatal)) note(entry, file);
    next(timestamp, level, file, function, line, entry.c_str(), entry.size());
  } catch (const std::bad_alloc&) {
    static const char lost[] = "out of host memory: an entry of the log is lost";
    next(timestamp, level, file, function, line, lost, sizeof(lost) - 1);
  }
}

}  // namespace

void clear_last_error() noexcept {
  if (forgotten) return;
  last_error().sentence.clear();
  last_error().missing.clear();
  last_error().is_followed = false;
}

void set_last_error(const std::string& sentence) noexcept {
  set(sentence);
}

std::string last_reported_error() {
  return forgotten ? std::string() : last_error().sentence;
}

void watch_executorch_log() noexcept {
  // register_pal() would do, but it logs an error when somebody has called it before, as the Python binding
  // has.
  auto* table = const_cast<::executorch::runtime::PalImpl*>(::executorch::runtime::get_pal_impl());
  const Emit installed = __atomic_load_n(&table->emit_log_message, __ATOMIC_ACQUIRE);
  if (installed == emit || installed == nullptr) return;
  Emit none = nullptr;
  first_emit.compare_exchange_strong(none, installed);
  next_emit.store(installed);
  __atomic_store_n(&table->emit_log_message, &emit, __ATOMIC_RELEASE);
}

OwnLog::OwnLog() noexcept {
  ++own_logs;
}

OwnLog::~OwnLog() {
  --own_logs;
}

}  // namespace etcuda
