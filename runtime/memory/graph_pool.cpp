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
  PooledStorage(std::shared_ptr<GraphPool> pool, const Block& block, size_t nbytes)
      : Storage(block.data, nbytes, pool->device_type_, pool->device_),
        pool_(std::move(pool)),
        block_(block) {}
  ~PooledStorage() override {
    if (block_.data != nullptr) pool_->free_.emplace(block_.nbytes, block_);
  }

 private:
  const std::shared_ptr<GraphPool> pool_;
  const Block block_;
};

GraphPool::GraphPool(int device) : allocator_(cuda_allocator(device)), device_type_(kCuda), device_(device) {}

GraphPool::GraphPool() : allocator_(pinned_allocator()), device_type_(kHost), device_(0) {}

GraphPool::~GraphPool() {
  for (const auto& [nbytes, block] : free_) {
    allocator_.count_graph_bytes(-static_cast<int64_t>(nbytes));
    allocator_.deallocate(block);
  }
}

StoragePtr GraphPool::allocate(size_t nbytes) {
  const Block block = take(nbytes);
  return std::make_shared<PooledStorage>(shared_from_this(), block, nbytes);
}

Block GraphPool::take(size_t nbytes) {
  if (nbytes == 0) return {};
  // A block of another graph's, up to twice as large, is better than one more.
  const auto it = free_.lower_bound(nbytes);
  if (it != free_.end() && it->first <= 2 * nbytes + kSmall) {
    const Block block = it->second;
    free_.erase(it);
    return block;
  }
  check_limit(nbytes);
  // Of no stream: idle when the delegate has waited for its last launch, as it does in every call.
  const Block block = allocator_.allocate(nbytes, nullptr);
  allocator_.count_graph_bytes(static_cast<int64_t>(block.nbytes));
  return block;
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
