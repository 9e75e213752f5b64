// cuDNN, opened when the first convolution runs on a GPU. A program does without it: see convolution.h.
#pragma once

#include <mutex>
#include <string>

#include "cuda/cudnn_abi.h"

namespace etcuda {

// A handle of cuDNN, for whoever holds the lock: it has one stream at a time.
struct CudnnTurn {
  std::unique_lock<std::mutex> lock;
  CudnnHandle handle = nullptr;
};

class Cudnn {
 public:
  // Null where there is none, or ETCUDA_CUDNN is "off". Throws Failure if ETCUDA_CUDNN names a library that
  // cannot be used.
  static Cudnn* get();
  // Why get() returns null; empty if it does not.
  static const std::string& unavailable_reason();
  // Tried before the system's search path.
  static void set_path(const std::string& path);

#define ETCUDA_DECLARE(result, name, parameters) result(*name) parameters = nullptr;
  ETCUDA_CUDNN_FUNCTIONS(ETCUDA_DECLARE)
#undef ETCUDA_DECLARE

  // The handle of a device, whose context is current. Made by the first call, which must not be part of a
  // capture: throws Failure(NotSupported) there.
  CudnnTurn take_turn(int device);
  // The name of a status, and cuDNN's last words on this thread.
  std::string describe(CudnnStatus status) const;
  // Throws Failure.
  void check(CudnnStatus status, const char* what) const;

 private:
  Cudnn() = default;
  std::string open();

  bool is_named_ = false;  // by ETCUDA_CUDNN
};

// A descriptor of cuDNN's graph API.
class CudnnObject {
 public:
  // Throws Failure.
  CudnnObject(Cudnn& cudnn, int kind);
  ~CudnnObject();
  CudnnObject(CudnnObject&& other) noexcept;
  CudnnObject(const CudnnObject&) = delete;
  CudnnObject& operator=(const CudnnObject&) = delete;
  CudnnObject& operator=(CudnnObject&&) = delete;

  CudnnDescriptor get() const { return descriptor_; }
  CudnnStatus finalize() const { return cudnn_->cudnnBackendFinalize(descriptor_); }

  CudnnStatus try_set(int attribute, int type, int64_t count, const void* values) const;
  // Throws Failure, as all below.
  template <typename T>
  void set(int attribute, int type, const T& value) const {
    cudnn_->check(try_set(attribute, type, 1, &value), "cudnnBackendSetAttribute");
  }
  void set_list(int attribute, int type, int64_t count, const void* values) const;
  void set_object(int attribute, const CudnnObject& value) const;
  // As many values as there are, `capacity` at most.
  int64_t get_list(int attribute, int type, int64_t capacity, void* values) const;
  void finish() const;

 private:
  Cudnn* cudnn_;
  CudnnDescriptor descriptor_ = nullptr;
};

}  // namespace etcuda
