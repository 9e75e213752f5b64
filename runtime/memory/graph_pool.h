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

  // Between two graphs, when no storage of the pool is in use: what follows is for the next one.
  void begin_graph();
  // Bytes of the blocks that have been used since begin_graph(), and of all.
  size_t used() const { return used_; }
  size_t reserved() const { return reserved_; }
  // Gives back the blocks that have not been used since begin_graph().
  void trim() noexcept;

 private:
  struct Held {
    Block block;
    uint64_t graph;  // of which it was used last, counted
  };

  class PooledStorage;
  Held take(size_t nbytes);
  void give_back(const Block& block) noexcept;
  void check_limit(size_t nbytes) const;

  CachingAllocator& allocator_;
  const DeviceType device_type_;
  const int device_;
  std::multimap<size_t, Held> free_;
  uint64_t graph_ = 0;
  size_t used_ = 0;
  size_t reserved_ = 0;
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
