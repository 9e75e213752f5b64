// What an AtenTensorHandle points to: a strided view of a reference-counted storage.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "core/dtype.h"
#include "memory/allocator.h"

namespace etcuda {

constexpr int64_t kMaxTensorRank = 16;

// Bytes somewhere. Subclasses say who frees them.
class Storage {
 public:
  Storage(void* data, size_t nbytes, DeviceType device_type, int device_index)
      : data(data), nbytes(nbytes), device_type(device_type), device_index(device_index) {}
  virtual ~Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* const data;
  const size_t nbytes;
  const DeviceType device_type;
  const int device_index;
};

using StoragePtr = std::shared_ptr<Storage>;

// Memory of the caching allocator of that device, reordered by this thread's current stream on CUDA; inside
// of a PoolScope, that of its pool.
StoragePtr allocate_storage(size_t nbytes, DeviceType device_type, int device_index);
// As above, but for storages that outlive a call: idle whenever they are freed.
StoragePtr allocate_persistent_storage(size_t nbytes, DeviceType device_type, int device_index);
StoragePtr allocate_pinned_storage(size_t nbytes);
// Bytes inside of `whole`, which stays as long as they are used.
StoragePtr share_storage(const StoragePtr& whole, size_t offset, size_t nbytes);
// Memory that somebody else owns and keeps.
StoragePtr borrow_storage(void* data, size_t nbytes, DeviceType device_type, int device_index);

struct Tensor {
  StoragePtr storage;
  int64_t rank = 0;
  int64_t offset = 0;  // in elements
  DType dtype = kFloat32;
  std::array<int64_t, kMaxTensorRank> sizes{};
  std::array<int64_t, kMaxTensorRank> strides{};

  void* data() const {
    auto* base = static_cast<char*>(storage->data);
    return base == nullptr ? nullptr : base + offset * static_cast<int64_t>(dtype_size(dtype));
  }
  template <typename T>
  T* data_as() const {
    return static_cast<T*>(data());
  }
  DeviceType device_type() const { return storage->device_type; }
  int device_index() const { return storage->device_index; }
  int64_t numel() const;
  bool is_contiguous() const;
  // Elements from the first to one past the last that the view touches.
  int64_t extent() const;
};

// Throws Failure(InvalidArgument) on a rank, size, stride or dtype that is not possible, or an overflow.
std::unique_ptr<Tensor> make_view(StoragePtr storage, int64_t rank, const int64_t* sizes,
                                  const int64_t* strides, int64_t offset, int32_t dtype);
std::unique_ptr<Tensor> make_empty(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                   int32_t device_type, int32_t device_index, bool pinned = false);
std::string describe_shape(int64_t rank, const int64_t* sizes);

}  // namespace etcuda
