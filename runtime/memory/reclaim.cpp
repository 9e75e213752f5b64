#include "memory/reclaim.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace etcuda {
namespace {

// Never destroyed: delegates may be unloaded while the process exits.
struct Holders {
  std::mutex mutex;
  std::vector<MemoryHolder*> all;
};

Holders& holders() {
  static auto* value = new Holders();
  return *value;
}

}  // namespace

MemoryHolder::MemoryHolder() {
  const std::lock_guard<std::mutex> lock(holders().mutex);
  holders().all.push_back(this);
}

void MemoryHolder::retire() noexcept {
  const std::lock_guard<std::mutex> lock(holders().mutex);
  auto& all = holders().all;
  all.erase(std::remove(all.begin(), all.end(), this), all.end());
}

bool release_held_memory(int device) noexcept {
  const std::lock_guard<std::mutex> lock(holders().mutex);
  bool any = false;
  for (MemoryHolder* holder : holders().all) any = holder->release_memory(device) || any;
  return any;
}

}  // namespace etcuda
