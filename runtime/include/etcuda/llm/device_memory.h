// Whether a GPU has room for a language model, said before its weights are loaded.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <string>

extern "C" int etcuda_device_memory(uint64_t* free_bytes, uint64_t* total_bytes, uint64_t* in_use);

namespace etcuda {

// Bytes that a program says it needs, as its constants have them, and those that there are.
struct DeviceMemoryNeed {
  uint64_t weights;
  uint64_t caches;  // of one session
  int64_t max_seq_len;
};

// What is wrong with loading it into `free_bytes` of `total_bytes`, a sentence; empty if nothing is. Caches
// are there twice: those of the program's own state and those of a session.
inline std::string device_memory_problem(const DeviceMemoryNeed& need, uint64_t free_bytes,
                                         uint64_t total_bytes) {
  const uint64_t wanted = need.weights + 2 * need.caches;
  if (wanted <= free_bytes || need.max_seq_len <= 0) return "";
  const auto gib = [](uint64_t nbytes) { return static_cast<double>(nbytes) / (1 << 30); };
  char text[512];
  std::snprintf(
      text, sizeof(text),
      "expected %.2f GiB free on the GPU, for weights of %.2f GiB and caches of %.2f GiB for %" PRId64
      " tokens, in the program and in a session, got %.2f of %.2f GiB. ",
      gib(wanted), gib(need.weights), gib(2 * need.caches), need.max_seq_len, gib(free_bytes),
      gib(total_bytes));
  const double per_token = 2.0 * static_cast<double>(need.caches) / static_cast<double>(need.max_seq_len);
  const double left = static_cast<double>(free_bytes) - static_cast<double>(need.weights);
  const auto fits = left > 0 && need.caches > 0 ? static_cast<int64_t>(left / per_token) : 0;
  return text + (fits >= 4
                     ? "Export with --max-seq-len " + std::to_string(fits) + " or less, or free its memory."
                     : std::string("Quantise the weights to fewer bits, or take a GPU with more memory."));
}

// The same of this process's GPU, before etcuda loaded anything there: later programs may share weights.
inline std::string device_memory_problem(const DeviceMemoryNeed& need) {
  uint64_t free_bytes = 0, total_bytes = 0, in_use = 0;
  // A GPU that cannot be asked cannot load the program either, which says why.
  if (etcuda_device_memory(&free_bytes, &total_bytes, &in_use) != 0 || in_use != 0) return "";
  return device_memory_problem(need, free_bytes, total_bytes);
}

}  // namespace etcuda
