// Memory that CUDA graphs use again with every launch.
#pragma once

#include <map>
#include <memory>

#include "memory/allocator.h"
#include "memory/tensor.h"

namespace etcuda {

// Blocks of the graphs of one delegate, which never run at the same time: what one graph has no use for any
// more, others may use. Returned to the allocator when the last storage and owner are gone. Not for several
// threads at a time.
class GraphPool : public std::enable_shared_from_this<GraphPool> {
 public:
  // Memory of a device.
  explicit GraphPool(int device);
  // Pinned memory of the host.
  GraphPool();
  ~GraphPool();
  GraphPool(const GraphPool&) = delete;
  GraphPool& operator=(const GraphPool&) = delete;

  int device() const { return device_; }
  // Throws Failure(MemoryAllocationFailed), on a device also at the bound of cuda_graph_memory_limit().
  StoragePtr allocate(size_t nbytes);

 private:
  class PooledStorage;
  Block take(size_t nbytes);
  void check_limit(size_t nbytes) const;

  CachingAllocator& allocator_;
  const DeviceType device_type_;
  const int device_;
  std::multimap<size_t, Block> free_;
};

// While one lives, allocate_storage() on this thread takes device memory from the pool.
class PoolScope {
 public:
  explicit PoolScope(std::shared_ptr<GraphPool> pool);
  ~PoolScope();
  PoolScope(const PoolScope&) = delete;
  PoolScope& operator=(const PoolScope&) = delete;

  // Of this thread; null outside of a scope.
  static GraphPool* current();

 private:
  std::shared_ptr<GraphPool> pool_;
  GraphPool* previous_;
};

}  // namespace etcuda
