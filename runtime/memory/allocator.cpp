#include "memory/allocator.h"

#include <algorithm>
#include <cinttypes>

#include "core/failure.h"

// A sanitiser sees each allocation's true bounds and lifetime only if nothing is rounded or kept.
#if defined(__SANITIZE_ADDRESS__)
#define ETCUDA_CACHING 0
#else
#define ETCUDA_CACHING 1
#endif

namespace etcuda {

size_t CachingAllocator::round_up(size_t nbytes, BlockSize size) const {
#if ETCUDA_CACHING
  size_t step = granularity_;
  if (size == BlockSize::kClass) {
    // Steps of an eighth of the power of two below, so that nearby sizes share a class and at most 12.5% is
    // lost.
    const size_t power = size_t{1} << (63 - __builtin_clzll(nbytes));
    step = std::max(step, power / 8);
  }
  return (nbytes + step - 1) / step * step;
#else
  (void)size;
  return nbytes;
#endif
}

bool CachingAllocator::take_cached(size_t nbytes, StreamOrder* stream, Block* block) {
  // A block up to a quarter larger is better than another call to the driver.
  for (auto it = free_.lower_bound(nbytes); it != free_.end() && it->first <= nbytes + nbytes / 4; ++it) {
    auto& blocks = it->second;
    for (size_t i = blocks.size(); i-- > 0;) {
      const Free& candidate = blocks[i];
      const bool idle = candidate.stream == nullptr || candidate.epoch <= candidate.stream->synchronized;
      if (!idle && candidate.stream != stream) continue;
      *block = Block{candidate.data, it->first, stream};
      blocks[i] = blocks.back();
      blocks.pop_back();
      return true;
    }
  }
  return false;
}

void* CachingAllocator::reserve(size_t nbytes) {
  if (limit_ != 0 && stats_.reserved + nbytes > limit_) return nullptr;
  ++stats_.calls;
  return system_allocate(nbytes);
}

// Gives up what is cached, then what others hold to be fast.
void* CachingAllocator::reserve_at_any_price(size_t nbytes, std::unique_lock<std::mutex>& lock) {
  void* data = nullptr;
  for (const bool reclaims : {false, true}) {
    lock.unlock();
    const bool is_worth_it = !reclaims || system_reclaim();
    // Before the allocator's lock, for a thread that captures allocates.
    const auto no_captures = hold_off_captures();
    lock.lock();
    if (is_worth_it) {
      empty_cache_locked();
      data = reserve(nbytes);
    }
    if (data != nullptr) break;
  }
  return data;
}

Block CachingAllocator::allocate(size_t nbytes, StreamOrder* stream, BlockSize size) {
  if (nbytes == 0) return {};
  if (nbytes > SIZE_MAX / 2) {
    fail(ErrorCode::MemoryAllocationFailed, "cannot allocate %zu bytes on %s: the size is not sensible.",
         nbytes, where());
  }
  const size_t rounded = round_up(nbytes, size);
  std::unique_lock<std::mutex> lock(mutex_);
  Block block;
  if (!take_cached(rounded, stream, &block)) {
    void* data = reserve(rounded);
    if (data == nullptr && may_synchronize()) data = reserve_at_any_price(rounded, lock);
    if (data == nullptr) {
      fail(ErrorCode::MemoryAllocationFailed,
           "out of memory on %s: %zu bytes wanted, %" PRIu64
           " in use by etcuda, limit %s. Use smaller inputs, "
           "unload other models, or free memory held by other programs.",
           where(), rounded, stats_.allocated, limit_ == 0 ? "none" : std::to_string(limit_).c_str());
    }
    stats_.reserved += rounded;
    block = Block{data, rounded, stream};
  }
  stats_.allocated += block.nbytes;
  stats_.peak = std::max(stats_.peak, stats_.allocated);
  return block;
}

void CachingAllocator::deallocate(const Block& block) noexcept {
  if (block.data == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  stats_.allocated -= block.nbytes;
  bool cached = false;
#if ETCUDA_CACHING
  try {
    const uint64_t epoch = block.stream == nullptr ? 0 : block.stream->epoch;
    free_[block.nbytes].push_back(Free{block.data, block.stream, epoch});
    cached = true;
  } catch (const std::bad_alloc&) {
    // No memory for the list: the block goes back to the system below.
    cached = false;
  }
#endif
  if (!cached) {
    system_free(block.data);
    stats_.reserved -= block.nbytes;
  }
}

void CachingAllocator::retire(const StreamOrder* stream) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& entry : free_) {
    for (Free& block : entry.second) {
      if (block.stream == stream) block.stream = nullptr;
    }
  }
}

void CachingAllocator::empty_cache_locked() {
  system_synchronize();
  for (auto& entry : free_) {
    for (const Free& block : entry.second) {
      system_free(block.data);
      stats_.reserved -= entry.first;
    }
  }
  free_.clear();
}

void CachingAllocator::empty_cache() {
  const auto no_captures = hold_off_captures();
  const std::lock_guard<std::mutex> lock(mutex_);
  empty_cache_locked();
}

void CachingAllocator::count_graph_bytes(int64_t change) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  stats_.graphs += static_cast<uint64_t>(change);
}

MemoryStats CachingAllocator::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void CachingAllocator::set_limit(uint64_t nbytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  limit_ = nbytes;
}

}  // namespace etcuda
