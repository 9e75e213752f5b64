// Making, releasing and asking tensors.
#include "cuda/driver.h"
#include "shims/lend_handles.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

thread_local bool lending = false;

AotiError empty_strided(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                        int32_t device_type, int32_t device_index, TensorHandle* result) {
  return guarded(
      [&] { *result = make_empty(rank, sizes, strides, dtype, device_type, device_index).release(); });
}

AotiError empty_strided_pinned(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                               int32_t device_type, int32_t device_index, TensorHandle* result) {
  return guarded(
      [&] { *result = make_empty(rank, sizes, strides, dtype, device_type, device_index, true).release(); });
}

AotiError create_from_blob(void* data, int64_t rank, const int64_t* sizes, const int64_t* strides,
                           int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                           TensorHandle* result) {
  return guarded([&] {
    if (data == nullptr) {
      *result = make_empty(rank, sizes, strides, dtype, device_type, device_index).release();
      return;
    }
    // The caller vouches for the memory, whose size it does not say.
    const auto storage = borrow_storage(data, SIZE_MAX, static_cast<DeviceType>(device_type),
                                        device_index < 0 ? current_cuda().device : device_index);
    auto tensor = make_view(storage, rank, sizes, strides, offset, dtype);
    const auto nbytes =
        static_cast<size_t>(tensor->extent() + (tensor->extent() == 0 ? 0 : offset)) * dtype_size(dtype);
    tensor->storage = borrow_storage(data, nbytes, storage->device_type, storage->device_index);
    *result = tensor.release();
  });
}

AotiError create_from_blob_v2(void* data, int64_t rank, const int64_t* sizes, const int64_t* strides,
                              int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                              TensorHandle* result, int32_t layout, const uint8_t*, int64_t) {
  if (layout != 0) {
    return guarded([&] { fail(ErrorCode::NotSupported, "tensor layout %d is not strided.", layout); });
  }
  return create_from_blob(data, rank, sizes, strides, offset, dtype, device_type, device_index, result);
}

AotiError delete_tensor(TensorHandle tensor) {
  return guarded([&] { delete tensor; });
}

AotiError new_handle(TensorHandle tensor, TensorHandle* result) {
  return guarded([&] { *result = lending ? tensor : new Tensor(*tensor); });
}

AotiError new_uninitialized(TensorHandle* result) {
  return guarded([&] {
    auto tensor = std::make_unique<Tensor>();
    tensor->storage = borrow_storage(nullptr, 0, kHost, 0);
    *result = tensor.release();
  });
}

AotiError assign(TensorHandle source, TensorHandle destination) {
  return guarded([&] { *destination = *source; });
}

AotiError get_data_ptr(TensorHandle tensor, void** result) {
  *result = tensor->data();
  return kAotiSuccess;
}

AotiError get_storage_size(TensorHandle tensor, int64_t* result) {
  *result = static_cast<int64_t>(tensor->storage->nbytes);
  return kAotiSuccess;
}

AotiError get_storage_numel(TensorHandle tensor, int64_t* result) {
  *result = static_cast<int64_t>(tensor->storage->nbytes / dtype_size(tensor->dtype));
  return kAotiSuccess;
}

AotiError get_dim(TensorHandle tensor, int64_t* result) {
  *result = tensor->rank;
  return kAotiSuccess;
}

AotiError get_numel(TensorHandle tensor, int64_t* result) {
  *result = tensor->numel();
  return kAotiSuccess;
}

AotiError get_sizes(TensorHandle tensor, int64_t** result) {
  *result = tensor->sizes.data();
  return kAotiSuccess;
}

AotiError get_strides(TensorHandle tensor, int64_t** result) {
  *result = tensor->strides.data();
  return kAotiSuccess;
}

size_t checked_dim(const Tensor& tensor, int64_t dim) {
  const int64_t wrapped = dim < 0 ? dim + tensor.rank : dim;
  if (wrapped < 0 || wrapped >= tensor.rank) {
    fail(ErrorCode::InvalidArgument, "dimension %lld of a tensor of rank %lld.", static_cast<long long>(dim),
         static_cast<long long>(tensor.rank));
  }
  return static_cast<size_t>(wrapped);
}

AotiError get_size(TensorHandle tensor, int64_t dim, int64_t* result) {
  return guarded([&] { *result = tensor->sizes[checked_dim(*tensor, dim)]; });
}

AotiError get_stride(TensorHandle tensor, int64_t dim, int64_t* result) {
  return guarded([&] { *result = tensor->strides[checked_dim(*tensor, dim)]; });
}

AotiError get_dtype(TensorHandle tensor, int32_t* result) {
  *result = tensor->dtype;
  return kAotiSuccess;
}

AotiError get_device_type(TensorHandle tensor, int32_t* result) {
  *result = tensor->device_type();
  return kAotiSuccess;
}

AotiError get_device_index(TensorHandle tensor, int32_t* result) {
  *result = tensor->device_index();
  return kAotiSuccess;
}

AotiError get_layout(TensorHandle, int32_t* result) {
  *result = 0;
  return kAotiSuccess;
}

AotiError get_storage_offset(TensorHandle tensor, int64_t* result) {
  *result = tensor->offset;
  return kAotiSuccess;
}

AotiError is_contiguous(TensorHandle tensor, bool* result) {
  *result = tensor->is_contiguous();
  return kAotiSuccess;
}

AotiError is_defined(TensorHandle tensor, bool* result) {
  *result = tensor != nullptr;
  return kAotiSuccess;
}

size_t element_size(int32_t dtype) {
  return dtype_size(dtype);
}

}  // namespace

LendHandles::LendHandles() {
  lending = true;
}
LendHandles::~LendHandles() {
  lending = false;
}

ShimList tensor_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_empty_strided", empty_strided),
      shim("aoti_torch_empty_strided_pinned", empty_strided_pinned),
      shim("aoti_torch_create_tensor_from_blob", create_from_blob),
      shim("aoti_torch_create_tensor_from_blob_v2", create_from_blob_v2),
      shim("aoti_torch_delete_tensor_object", delete_tensor),
      shim("aoti_torch_new_tensor_handle", new_handle),
      shim("aoti_torch_new_uninitialized_tensor", new_uninitialized),
      shim("aoti_torch_assign_tensors", assign),
      shim("aoti_torch_assign_tensors_out", new_handle),
      shim("aoti_torch_get_data_ptr", get_data_ptr),
      shim("aoti_torch_get_storage_size", get_storage_size),
      shim("aoti_torch_get_storage_numel", get_storage_numel),
      shim("aoti_torch_get_dim", get_dim),
      shim("aoti_torch_get_numel", get_numel),
      shim("aoti_torch_get_sizes", get_sizes),
      shim("aoti_torch_get_strides", get_strides),
      shim("aoti_torch_get_size", get_size),
      shim("aoti_torch_get_stride", get_stride),
      shim("aoti_torch_get_dtype", get_dtype),
      shim("aoti_torch_get_device_type", get_device_type),
      shim("aoti_torch_get_device_index", get_device_index),
      shim("aoti_torch_get_layout", get_layout),
      shim("aoti_torch_get_storage_offset", get_storage_offset),
      shim("aoti_torch_is_contiguous", is_contiguous),
      shim("aoti_torch_is_defined", is_defined),
      shim("aoti_torch_dtype_element_size", element_size),
  };
  return shim_list(shims);
}

}  // namespace etcuda
