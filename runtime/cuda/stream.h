// A CUDA stream of one delegate, with the order in which its memory may be reused.
#pragma once

#include <memory>

#include "cuda/driver.h"
#include "memory/allocator.h"

namespace etcuda {

class Storage;

class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int device() const { return device_; }
  CUstream handle() const { return handle_; }
  StreamOrder* order() { return &order_; }
  // Waits for everything issued so far; memory freed before is idle afterwards.
  void synchronize();
  // Scratch memory for library calls on this stream; kept for the next one. Null for no bytes.
  void* workspace(size_t nbytes);

 private:
  const int device_;
  std::shared_ptr<Storage> workspace_;
  CUstream handle_ = nullptr;
  StreamOrder order_;
};

// Makes a stream the one that this thread's shims allocate and launch on.
class StreamScope {
 public:
  explicit StreamScope(Stream& stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  CudaScope cuda_;
  Stream* previous_;
};

// Order of this thread's current stream; null outside of a StreamScope.
StreamOrder* current_order();
// Throws Failure outside of a StreamScope.
Stream& require_current_stream();

}  // namespace etcuda
