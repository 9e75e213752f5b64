#include "memory/graph_pool.h"

#include <cinttypes>

#include "core/failure.h"
#include "cuda/graph_settings.h"

namespace etcuda {
namespace {

constexpr size_t kSmall = 4096;

thread_local GraphPool* current_pool = nullptr;

}  // namespace

class GraphPool::PooledStorage final : public Storage {
 public:
  PooledStorage(std::shared_ptr<GraphPool> pool, const Held& held, size_t nbytes)
      : Storage(held.block.data, nbytes, pool->device_type_, pool->device_),
        pool_(std::move(pool)),
        held_(held) {}
  ~PooledStorage() override {
    if (held_.block.data != nullptr) pool_->free_.emplace(held_.block.nbytes, held_);
  }

 private:
  const std::shared_ptr<GraphPool> pool_;
  const Held held_;
};

GraphPool::GraphPool(int device) : allocator_(cuda_allocator(device)), device_type_(kCuda), device_(device) {}

GraphPool::GraphPool() : allocator_(pinned_allocator()), device_type_(kHost), device_(0) {}

GraphPool::~GraphPool() {
  for (const auto& entry : free_) give_back(entry.second.block);
}

void GraphPool::begin_graph() {
  ++graph_;
  used_ = 0;
}

void GraphPool::trim() noexcept {
  for (auto it = free_.begin(); it != free_.end();) {
    if (it->second.graph == graph_) {
      ++it;
    } else {
      give_back(it->second.block);
      it = free_.erase(it);
    }
  }
}

void GraphPool::give_back(const Block& block) noexcept {
  reserved_ -= block.nbytes;
  allocator_.count_graph_bytes(-static_cast<int64_t>(block.nbytes));
  allocator_.deallocate(block);
}

StoragePtr GraphPool::allocate(size_t nbytes) {
  return std::make_shared<PooledStorage>(shared_from_this(), take(nbytes), nbytes);
}

GraphPool::Held GraphPool::take(size_t nbytes) {
  if (nbytes == 0) return {};
  Held held{{}, graph_};
  // A block of another graph's, up to twice as large, is better than one more.
  const auto it = free_.lower_bound(nbytes);
  if (it != free_.end() && it->first <= 2 * nbytes + kSmall) {
    held.block = it->second.block;
    if (it->second.graph != graph_) used_ += held.block.nbytes;
    free_.erase(it);
    return held;
  }
  check_limit(nbytes);
  // Of no stream: idle when the delegate has waited for its last launch, as it does in every call.
  held.block = allocator_.allocate(nbytes, nullptr);
  allocator_.count_graph_bytes(static_cast<int64_t>(held.block.nbytes));
  reserved_ += held.block.nbytes;
  used_ += held.block.nbytes;
  return held;
}

void GraphPool::check_limit(size_t nbytes) const {
  const uint64_t limit = device_type_ == kCuda ? cuda_graph_memory_limit() : 0;
  const uint64_t held = allocator_.stats().graphs;
  if (limit == 0 || held + nbytes <= limit) return;
  fail(ErrorCode::MemoryAllocationFailed,
       "%zu bytes wanted, the graphs of cuda:%d hold %" PRIu64 " of %" PRIu64
       " bytes that are allowed. Raise the bound, or use smaller inputs.",
       nbytes, device_, held, limit);
}

PoolScope::PoolScope(std::shared_ptr<GraphPool> pool) : pool_(std::move(pool)), previous_(current_pool) {
  current_pool = pool_.get();
}

PoolScope::~PoolScope() {
  current_pool = previous_;
}

GraphPool* PoolScope::current() {
  return current_pool;
}

}  // namespace etcuda
