#include "memory/tensor.h"

#include "blob/layout.h"
#include "core/failure.h"
#include "cuda/stream.h"
#include "memory/graph_pool.h"

namespace etcuda {
namespace {

class AllocatedStorage final : public Storage {
 public:
  AllocatedStorage(CachingAllocator& allocator, const Block& block, size_t nbytes, DeviceType type, int index)
      : Storage(block.data, nbytes, type, index), allocator_(allocator), block_(block) {}
  ~AllocatedStorage() override { allocator_.deallocate(block_); }

 private:
  CachingAllocator& allocator_;
  const Block block_;
};

class SharedStorage final : public Storage {
 public:
  SharedStorage(StoragePtr whole, void* data, size_t nbytes)
      : Storage(data, nbytes, whole->device_type, whole->device_index), whole_(std::move(whole)) {}

 private:
  const StoragePtr whole_;
};

StoragePtr allocate_from(CachingAllocator& allocator, size_t nbytes, DeviceType type, int index,
                         StreamOrder* stream, BlockSize size = BlockSize::kClass) {
  const Block block = allocator.allocate(nbytes, stream, size);
  try {
    return std::make_shared<AllocatedStorage>(allocator, block, nbytes, type, index);
  } catch (...) {
    allocator.deallocate(block);
    throw;
  }
}

CachingAllocator& allocator_for(DeviceType type, int index) {
  if (type == kHost) return host_allocator();
  if (type == kCuda) return cuda_allocator(index);
  fail(ErrorCode::NotSupported, "device type %d is neither cpu nor cuda.", static_cast<int>(type));
}

}  // namespace

StoragePtr allocate_storage(size_t nbytes, DeviceType type, int index) {
  GraphPool* pool = type == kCuda ? PoolScope::current() : nullptr;
  if (pool != nullptr && pool->device() == index) return pool->allocate(nbytes);
  return allocate_from(allocator_for(type, index), nbytes, type, index,
                       type == kCuda ? current_order() : nullptr);
}

StoragePtr allocate_persistent_storage(size_t nbytes, DeviceType type, int index) {
  return allocate_from(allocator_for(type, index), nbytes, type, index, nullptr, BlockSize::kExact);
}

StoragePtr allocate_pinned_storage(size_t nbytes) {
  return allocate_from(pinned_allocator(), nbytes, kHost, 0, nullptr);
}

StoragePtr share_storage(const StoragePtr& whole, size_t offset, size_t nbytes) {
  return std::make_shared<SharedStorage>(whole, static_cast<char*>(whole->data) + offset, nbytes);
}

StoragePtr borrow_storage(void* data, size_t nbytes, DeviceType type, int index) {
  return std::make_shared<Storage>(data, nbytes, type, index);
}

int64_t Tensor::numel() const {
  int64_t count = 1;
  for (int64_t i = 0; i < rank; ++i) count *= sizes[static_cast<size_t>(i)];
  return count;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (auto i = static_cast<size_t>(rank); i-- > 0;) {
    if (sizes[i] == 0) return true;
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

int64_t Tensor::extent() const {
  return view_extent(sizes.data(), strides.data(), static_cast<size_t>(rank)).value_or(0);
}

namespace {

void fill_layout(Tensor& tensor, int64_t rank, const int64_t* sizes, const int64_t* strides, int64_t offset,
                 int32_t dtype) {
  if (rank < 0 || rank > kMaxTensorRank) {
    fail(ErrorCode::InvalidArgument, "a tensor of rank %lld is not supported, at most %lld are.",
         static_cast<long long>(rank), static_cast<long long>(kMaxTensorRank));
  }
  if (dtype_size(dtype) == 0) fail(ErrorCode::InvalidArgument, "dtype code %d is not supported.", dtype);
  tensor.rank = rank;
  tensor.offset = offset;
  tensor.dtype = static_cast<DType>(dtype);
  for (size_t i = 0; i < static_cast<size_t>(rank); ++i) {
    if (sizes[i] < 0 || strides[i] < 0) {
      fail(ErrorCode::InvalidArgument, "a tensor has size %lld and stride %lld in dimension %zu.",
           static_cast<long long>(sizes[i]), static_cast<long long>(strides[i]), i);
    }
    tensor.sizes[i] = sizes[i];
    tensor.strides[i] = strides[i];
  }
}

// Bytes up to the end of the view, from the start of its storage.
size_t bytes_needed(const Tensor& tensor) {
  const auto extent =
      view_extent(tensor.sizes.data(), tensor.strides.data(), static_cast<size_t>(tensor.rank));
  if (extent && *extent == 0) return 0;
  const auto end = extent ? checked_add(*extent, tensor.offset) : std::nullopt;
  const auto nbytes =
      end ? checked_multiply(*end, static_cast<int64_t>(dtype_size(tensor.dtype))) : std::nullopt;
  if (!nbytes || tensor.offset < 0) {
    fail(ErrorCode::InvalidArgument, "a tensor of shape %s is too large for this machine.",
         describe_shape(tensor.rank, tensor.sizes.data()).c_str());
  }
  return static_cast<size_t>(*nbytes);
}

}  // namespace

std::unique_ptr<Tensor> make_view(StoragePtr storage, int64_t rank, const int64_t* sizes,
                                  const int64_t* strides, int64_t offset, int32_t dtype) {
  auto tensor = std::make_unique<Tensor>();
  fill_layout(*tensor, rank, sizes, strides, offset, dtype);
  const size_t needed = bytes_needed(*tensor);
  if (needed > storage->nbytes) {
    fail(ErrorCode::InvalidArgument, "a view of shape %s needs %zu bytes of a storage that has %zu.",
         describe_shape(rank, sizes).c_str(), needed, storage->nbytes);
  }
  tensor->storage = std::move(storage);
  return tensor;
}

std::unique_ptr<Tensor> make_empty(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                   int32_t device_type, int32_t device_index, bool pinned) {
  auto tensor = std::make_unique<Tensor>();
  fill_layout(*tensor, rank, sizes, strides, 0, dtype);
  const size_t nbytes = bytes_needed(*tensor);
  const int index = device_index < 0 ? current_cuda().device : device_index;
  tensor->storage = pinned ? allocate_pinned_storage(nbytes)
                           : allocate_storage(nbytes, static_cast<DeviceType>(device_type),
                                              device_type == kHost ? 0 : index);
  return tensor;
}

std::string describe_shape(int64_t rank, const int64_t* sizes) {
  std::string text = "[";
  for (int64_t i = 0; i < rank; ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(sizes[i]);
  }
  return text + "]";
}

}  // namespace etcuda
