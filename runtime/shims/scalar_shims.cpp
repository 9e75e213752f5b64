// Between one-element tensors and C values.
#include <cstring>

#include "core/half.h"
#include "cuda/copy.h"
#include "host/strided_copy.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

void read_item(const Tensor& tensor, DType dtype, void* result) {
  if (tensor.numel() != 1) {
    fail(ErrorCode::InvalidArgument, "a value is wanted of a tensor of shape %s, which has not exactly one.",
         describe_shape(tensor.rank, tensor.sizes.data()).c_str());
  }
  alignas(16) char element[16] = {};
  copy_bytes(element, kHost, tensor.data(), tensor.device_type(), dtype_size(tensor.dtype));
  synchronize(tensor.device_type());
  convert_scalar(result, dtype, element, tensor.dtype);
}

template <typename T, DType dtype>
AotiError item(TensorHandle tensor, T* result) {
  return guarded([&] { read_item(*tensor, dtype, result); });
}

template <typename T, DType dtype>
AotiError scalar_to_tensor(T value, TensorHandle* result) {
  return guarded([&] {
    auto tensor = make_empty(0, nullptr, nullptr, dtype, kHost, 0);
    std::memcpy(tensor->data(), &value, sizeof(T));
    *result = tensor.release();
  });
}

}  // namespace

ShimList scalar_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_item_bool", item<bool, kBool>),
      shim("aoti_torch_item_uint8", item<uint8_t, kUInt8>),
      shim("aoti_torch_item_uint16", item<uint16_t, kUInt16>),
      shim("aoti_torch_item_uint32", item<uint32_t, kUInt32>),
      shim("aoti_torch_item_uint64", item<uint64_t, kUInt64>),
      shim("aoti_torch_item_int8", item<int8_t, kInt8>),
      shim("aoti_torch_item_int16", item<int16_t, kInt16>),
      shim("aoti_torch_item_int32", item<int32_t, kInt32>),
      shim("aoti_torch_item_int64", item<int64_t, kInt64>),
      shim("aoti_torch_item_float16", item<Float16, kFloat16>),
      shim("aoti_torch_item_bfloat16", item<BFloat16, kBFloat16>),
      shim("aoti_torch_item_float32", item<float, kFloat32>),
      shim("aoti_torch_item_float64", item<double, kFloat64>),
      shim("aoti_torch_scalar_to_tensor_bool", scalar_to_tensor<bool, kBool>),
      shim("aoti_torch_scalar_to_tensor_uint8", scalar_to_tensor<uint8_t, kUInt8>),
      shim("aoti_torch_scalar_to_tensor_int8", scalar_to_tensor<int8_t, kInt8>),
      shim("aoti_torch_scalar_to_tensor_int16", scalar_to_tensor<int16_t, kInt16>),
      shim("aoti_torch_scalar_to_tensor_int32", scalar_to_tensor<int32_t, kInt32>),
      shim("aoti_torch_scalar_to_tensor_int64", scalar_to_tensor<int64_t, kInt64>),
      shim("aoti_torch_scalar_to_tensor_float32", scalar_to_tensor<float, kFloat32>),
      shim("aoti_torch_scalar_to_tensor_float64", scalar_to_tensor<double, kFloat64>),
  };
  return shim_list(shims);
}

}  // namespace etcuda
