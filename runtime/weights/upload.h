// Host bytes to a device storage, through pinned buffers that take turns.
#pragma once

#include "cuda/stream.h"
#include "memory/tensor.h"

namespace etcuda {

// For one thread. Several may copy on one stream, each with its own.
class Uploader {
 public:
  // Large enough to keep the bus busy, small enough to be in the processor's cache when it is hashed.
  static constexpr size_t kSlotBytes = size_t{1} << 20;

  // Makes the stream's device current on this thread.
  explicit Uploader(Stream& stream);
  // Waits for the stream, which may still read from the buffers.
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // Returns once `source` may be freed; the copy itself may still be under way.
  void upload(void* destination, const void* source, size_t nbytes);

 private:
  static constexpr size_t kSlots = 4;
  struct Slot {
    StoragePtr buffer;
    CUevent free = nullptr;
  };
  Stream& stream_;
  Slot slots_[kSlots];
  size_t next_ = 0;
};

}  // namespace etcuda
