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
      : Storage(block.data, nbytes, kCuda, pool->device()), pool_(std::move(pool)), block_(block) {}
  ~PooledStorage() override {
    if (block_.data != nullptr) pool_->free_.emplace(block_.nbytes, block_);
  }

 private:
  const std::shared_ptr<GraphPool> pool_;
  const Block block_;
};

GraphPool::~GraphPool() {
  CachingAllocator& allocator = cuda_allocator(device_);
  for (const auto& [nbytes, block] : free_) {
    allocator.count_graph_bytes(-static_cast<int64_t>(nbytes));
    allocator.deallocate(block);
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
  CachingAllocator& allocator = cuda_allocator(device_);
  const uint64_t limit = cuda_graph_memory_limit();
  const uint64_t held = allocator.stats().graphs;
  if (limit != 0 && held + nbytes > limit) {
    fail(ErrorCode::MemoryAllocationFailed,
         "%zu bytes wanted, the graphs of cuda:%d hold %" PRIu64 " of %" PRIu64 " bytes that are allowed.",
         nbytes, device_, held, limit);
  }
  // Of no stream: idle when the delegate has waited for its last launch, as it does in every call.
  const Block block = allocator.allocate(nbytes, nullptr);
  allocator.count_graph_bytes(static_cast<int64_t>(block.nbytes));
  return block;
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
