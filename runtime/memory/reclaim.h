// Device memory that is held to be fast, and is given up before an allocation fails.
#pragma once

namespace etcuda {

// Somebody who holds such memory. Known from its construction to its destruction.
class MemoryHolder {
 public:
  MemoryHolder();
  virtual ~MemoryHolder() = default;
  MemoryHolder(const MemoryHolder&) = delete;
  MemoryHolder& operator=(const MemoryHolder&) = delete;

  // Called by any thread, by one at a time. Whether memory of the device went back to its allocator; false
  // too if it is in use. Must not wait for a lock under which memory is allocated.
  virtual bool release_memory(int device) noexcept = 0;

 protected:
  // To be called first by the destructor of a subclass: release_memory() is not called any more.
  void retire() noexcept;
};

// Asks all. Not to be called under a lock of an allocator.
bool release_held_memory(int device) noexcept;

}  // namespace etcuda
