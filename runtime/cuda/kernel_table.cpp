#include "cuda/kernel_table.h"

#include <map>
#include <mutex>

#include "cuda/pdl.h"

namespace etcuda {
namespace {

// Of the whole process: an image may keep a handle as long as its modules are loaded, whichever delegate
// loaded them. An entry of an unloaded module stays until the driver gives its address to another function.
struct KernelTable {
  std::mutex mutex;
  std::map<CUfunction, Kernel> kernels;
};

KernelTable& table() {
  static auto* value = new KernelTable();
  return *value;
}

}  // namespace

CUfunction handle_of(CUfunction function, const char* name) {
  KernelTable& all = table();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto [entry, is_new] = all.kernels.try_emplace(function, Kernel{function, name, waits_by_itself(name)});
  // Threads may be launching the kernel of that name, but not another one at its address.
  if (!is_new && entry->second.name != name) entry->second = {function, name, waits_by_itself(name)};
  return reinterpret_cast<CUfunction>(&entry->second);
}

}  // namespace etcuda
