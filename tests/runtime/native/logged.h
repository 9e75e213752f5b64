// What a test's code writes to the log.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

namespace etcuda_test {

// Runs `body`; returns what the process wrote to stderr meanwhile. If `body` throws, that is lost.
template <typename Body>
std::string logged(const Body& body) {
  std::FILE* file = std::tmpfile();
  const int kept = dup(STDERR_FILENO);
  dup2(fileno(file), STDERR_FILENO);
  const auto restore = [&] {
    std::fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
  };
  try {
    body();
  } catch (...) {
    restore();
    std::fclose(file);
    throw;
  }
  restore();
  std::rewind(file);
  std::string text;
  char block[4096];
  for (size_t got; (got = std::fread(block, 1, sizeof(block), file)) > 0;) text.append(block, got);
  std::fclose(file);
  return text;
}

}  // namespace etcuda_test
