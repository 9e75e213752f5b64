#include "crash_report.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace etcuda_fuzz {
namespace {

int report_to = 2;
alignas(16) char stack[1 << 16];

enum class Owner { kSystem, kOurs, kTheirs };

const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

Owner owner_of(const Dl_info& info) {
  const char* path = info.dli_fname == nullptr ? "" : info.dli_fname;
  if (std::strstr(path, "libetcuda_runtime") != nullptr || std::strstr(path, "/proc/self/fd/") != nullptr)
    return Owner::kOurs;
  const char* name = file_name(path);
  for (const char* system :
       {"libc.so", "libstdc++", "libm.so", "libgcc_s", "ld-linux", "linux-vdso", "libpthread"}) {
    if (std::strncmp(name, system, std::strlen(system)) == 0) return Owner::kSystem;
  }
  // ExecuTorch's way to end a process, whoever calls it.
  const char* symbol = info.dli_sname == nullptr ? "" : info.dli_sname;
  if (std::strstr(symbol, "abort") != nullptr || std::strstr(symbol, "crash") != nullptr)
    return Owner::kSystem;
  return Owner::kTheirs;
}

// Not all of it is allowed in a handler; at worst the report is lost and the crash counts as unknown.
void on_crash(int number, siginfo_t*, void*) {
  void* frames[32];
  const int count = backtrace(frames, 32);
  Owner owner = Owner::kSystem;
  char line[1024];
  size_t used = 0;
  for (int i = 0; i < count && used < 800; ++i) {
    Dl_info info{};
    if (dladdr(frames[i], &info) == 0) continue;
    if (owner == Owner::kSystem &&
        std::strstr(info.dli_sname == nullptr ? "" : info.dli_sname, "on_crash") == nullptr && i > 0) {
      owner = owner_of(info);
    }
    const auto offset = static_cast<const char*>(frames[i]) - static_cast<const char*>(info.dli_fbase);
    const int n = std::snprintf(line + used, sizeof(line) - used, " %s+%lx", file_name(info.dli_fname),
                                static_cast<unsigned long>(offset));
    if (n > 0) used += static_cast<size_t>(n);
  }
  char text[1200];
  const int n = std::snprintf(text, sizeof(text), "crash %d %s%.*s\n", number,
                              owner == Owner::kOurs ? "ours" : "theirs", static_cast<int>(used), line);
  if (n > 0) {
    const ssize_t ignored = write(report_to, text, static_cast<size_t>(n));
    static_cast<void>(ignored);
  }
  _exit(100);
}

}  // namespace
}  // namespace etcuda_fuzz

extern "C" __attribute__((visibility("default"))) void etcuda_fuzz_report_crashes_to(int descriptor) {
  using namespace etcuda_fuzz;
  report_to = descriptor;
  void* warm[2];
  backtrace(warm, 2);
  stack_t other{};
  other.ss_sp = stack;
  other.ss_size = sizeof(stack);
  sigaltstack(&other, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
  for (const int number : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) sigaction(number, &action, nullptr);
}
