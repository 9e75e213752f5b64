#include "cuda/graph_settings.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/failure.h"

namespace etcuda {
namespace {

// 1 or 0; -1: the environment was not asked yet.
std::atomic<int> enabled_now{-1};

// The bound, or kUnknown: the environment was not asked yet.
constexpr uint64_t kUnknown = UINT64_MAX;
std::atomic<uint64_t> limit_now{kUnknown};

}  // namespace

bool cuda_graphs_enabled() {
  if (const int now = enabled_now.load(std::memory_order_relaxed); now >= 0) return now == 1;
  const char* text = std::getenv("ETCUDA_CUDA_GRAPHS");
  const bool is_on = text == nullptr || std::strcmp(text, "1") == 0;
  if (!is_on && std::strcmp(text, "0") != 0) {
    fail(ErrorCode::InvalidArgument,
         "the environment variable ETCUDA_CUDA_GRAPHS: expected 0 or 1, got '%s'. Correct or unset it.",
         text);
  }
  int unknown = -1;
  enabled_now.compare_exchange_strong(unknown, is_on ? 1 : 0);
  return enabled_now.load() == 1;
}

void set_cuda_graphs(bool enabled) noexcept {
  enabled_now.store(enabled ? 1 : 0);
}

uint64_t cuda_graph_memory_limit() {
  if (const uint64_t now = limit_now.load(std::memory_order_relaxed); now != kUnknown) return now;
  const char* text = std::getenv("ETCUDA_CUDA_GRAPH_MEMORY");
  uint64_t limit = 0;
  if (text != nullptr) {
    char* end = nullptr;
    errno = 0;
    limit = std::strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || limit == kUnknown) {
      fail(ErrorCode::InvalidArgument,
           "the environment variable ETCUDA_CUDA_GRAPH_MEMORY: expected a number of bytes, got '%s'. Correct "
           "or "
           "unset it.",
           text);
    }
  }
  uint64_t unknown = kUnknown;
  limit_now.compare_exchange_strong(unknown, limit);
  return limit_now.load();
}

void set_cuda_graph_memory_limit(uint64_t nbytes) noexcept {
  limit_now.store(nbytes == kUnknown ? 0 : nbytes);
}

void check_graph_settings() {
  cuda_graphs_enabled();
  cuda_graph_memory_limit();
}

GraphCounts& graph_counts() {
  static auto* counts = new GraphCounts();
  return *counts;
}

}  // namespace etcuda
