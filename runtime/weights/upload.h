// Host bytes to a device storage, through two pinned buffers that take turns.
#pragma once

#include "cuda/stream.h"
#include "memory/tensor.h"

namespace etcuda {

class Uploader {
 public:
  explicit Uploader(Stream& stream);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // Returns once `source` may be freed; the copy itself may still be under way.
  void upload(void* destination, const void* source, size_t nbytes);

 private:
  struct Slot {
    StoragePtr buffer;
    CUevent free = nullptr;
  };
  Stream& stream_;
  Slot slots_[2];
  int next_ = 0;
};

}  // namespace etcuda
