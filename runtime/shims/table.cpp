#include "shims/table.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "shims/abi.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

bool less(const Shim& a, const Shim& b) {
  return std::strcmp(a.name, b.name) < 0;
}

const std::vector<Shim>& table() {
  static const auto* shims = [] {
    auto* all = new std::vector<Shim>();
    for (const ShimList& list :
         {tensor_shims(), view_shims(), copy_shims(), scalar_shims(), process_shims(), host_matmul_shims(),
          host_order_shims(), cuda_stream_shims(), cuda_convolution_shims(), cuda_matmul_shims(),
          cuda_runtime_shims(), cuda_driver_shims()}) {
      all->insert(all->end(), list.shims, list.shims + list.count);
    }
    std::sort(all->begin(), all->end(), less);
    return all;
  }();
  return *shims;
}

}  // namespace

void* find_shim(const char* name) {
  const auto& shims = table();
  const auto it = std::lower_bound(shims.begin(), shims.end(), Shim{name, nullptr}, less);
  return it != shims.end() && std::strcmp(it->name, name) == 0 ? it->function : nullptr;
}

const char* const* shim_names(size_t* count) {
  static const auto* names = [] {
    auto* all = new std::vector<const char*>();
    for (const Shim& entry : table()) all->push_back(entry.name);
    return all;
  }();
  *count = names->size();
  return names->data();
}

}  // namespace etcuda
