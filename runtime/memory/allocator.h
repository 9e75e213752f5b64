// A caching allocator: freed blocks are kept by size and handed out again without a call to the system or the
// driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace etcuda {

// Orders the reuse of blocks on one stream. A freed block may still be read by work that the stream has not
// finished; other streams get it only after a synchronisation.
struct StreamOrder {
  uint64_t epoch = 1;         // stamped on blocks freed now
  uint64_t synchronized = 0;  // blocks with an epoch up to this one are idle
  void mark_synchronized() { synchronized = epoch++; }
};

struct Block {
  void* data = nullptr;
  size_t nbytes = 0;              // as reserved
  StreamOrder* stream = nullptr;  // null: idle whenever it is freed
};

// How the size of a block is chosen: a class that nearby sizes share, for blocks that come and go, or what
// was asked, for those that stay.
enum class BlockSize { kClass, kExact };

struct MemoryStats {
  uint64_t allocated = 0;  // in use
  uint64_t reserved = 0;   // in use or cached
  uint64_t peak = 0;       // of allocated
  uint64_t calls = 0;      // to the system or the driver
  uint64_t graphs = 0;     // of allocated: held for CUDA graphs
};

class CachingAllocator {
 public:
  explicit CachingAllocator(size_t granularity) : granularity_(granularity) {}
  virtual ~CachingAllocator() = default;
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  // Throws Failure(MemoryAllocationFailed) after the cache was emptied in vain. nbytes == 0 gives an empty
  // block.
  Block allocate(size_t nbytes, StreamOrder* stream = nullptr, BlockSize size = BlockSize::kClass);
  void deallocate(const Block& block) noexcept;
  // The stream is going away; it has been synchronised.
  void retire(const StreamOrder* stream) noexcept;
  void empty_cache();
  // Says how much of what is allocated is held for CUDA graphs.
  void count_graph_bytes(int64_t change) noexcept;
  MemoryStats stats() const;
  // Upper bound of reserved bytes; 0 for none.
  void set_limit(uint64_t nbytes);

 protected:
  // Null when there is no memory left.
  virtual void* system_allocate(size_t nbytes) = 0;
  virtual void system_free(void* data) noexcept = 0;
  // Waits until no block is in use by pending work. Under the lock that hold_off_captures() gave.
  virtual void system_synchronize() {}
  // Has others give back blocks that they hold to be fast; whether any did. Called without a lock of this
  // one.
  virtual bool system_reclaim() { return false; }
  // Whether this thread may do so now, and what keeps others from making it impossible.
  virtual bool may_synchronize() const { return true; }
  virtual std::unique_lock<std::mutex> hold_off_captures() const { return {}; }
  virtual const char* where() const = 0;

 private:
  struct Free {
    void* data;
    StreamOrder* stream;
    uint64_t epoch;
  };
  size_t round_up(size_t nbytes, BlockSize size) const;
  bool take_cached(size_t nbytes, StreamOrder* stream, Block* block);
  void* reserve(size_t nbytes);
  void* reserve_at_any_price(size_t nbytes, std::unique_lock<std::mutex>& lock);
  void empty_cache_locked();

  const size_t granularity_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<Free>> free_;
  MemoryStats stats_;
  uint64_t limit_ = 0;
};

CachingAllocator& host_allocator();
CachingAllocator& pinned_allocator();
CachingAllocator& cuda_allocator(int device);
// Runs `visit(device_type, device, allocator)` for every allocator made so far.
void for_each_allocator(void (*visit)(int device_type, int device, CachingAllocator&, void* argument),
                        void* argument);

}  // namespace etcuda
