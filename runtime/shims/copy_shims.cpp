// Moving and clearing data.
#include "cuda/copy.h"
#include "shims/lists.h"

namespace etcuda {
namespace {

std::unique_ptr<Tensor> clone_with(const Tensor& self, const int64_t* strides) {
  auto copy =
      make_empty(self.rank, self.sizes.data(), strides, self.dtype, self.device_type(), self.device_index());
  copy_tensor(*copy, self);
  return copy;
}

// As torch's clone: a dense tensor keeps its strides, any other becomes contiguous.
AotiError clone(TensorHandle self, TensorHandle* result) {
  return guarded([&] {
    if (self->extent() == self->numel()) {
      *result = clone_with(*self, self->strides.data()).release();
      return;
    }
    int64_t strides[kMaxTensorRank] = {};
    int64_t step = 1;
    for (auto i = static_cast<size_t>(self->rank); i-- > 0;) {
      strides[i] = step;
      step *= self->sizes[i];
    }
    *result = clone_with(*self, strides).release();
  });
}

// Copies the whole span, so that elements which pdl or lie between keep their place too.
AotiError clone_preserve_strides(TensorHandle self, TensorHandle* result) {
  return guarded([&] {
    auto copy = make_empty(self->rank, self->sizes.data(), self->strides.data(), self->dtype,
                           self->device_type(), self->device_index());
    copy_bytes(copy->data(), copy->device_type(), self->data(), self->device_type(),
               static_cast<size_t>(self->extent()) * dtype_size(self->dtype));
    *result = copy.release();
  });
}

AotiError copy(TensorHandle self, TensorHandle source, int32_t) {
  return guarded([&] { copy_tensor(*self, *source); });
}

AotiError tensor_copy(TensorHandle source, TensorHandle destination) {
  return guarded([&] { copy_tensor(*destination, *source); });
}

AotiError zero(TensorHandle self) {
  return guarded([&] {
    if (self->numel() == 0) return;
    if (self->extent() != self->numel()) {
      // A zero that is broadcast into every element leaves the bytes between them alone.
      const int64_t one = 1;
      const auto value = make_empty(1, &one, &one, self->dtype, self->device_type(), self->device_index());
      zero_bytes(value->data(), value->device_type(), dtype_size(self->dtype));
      copy_tensor(*self, *value);
      return;
    }
    zero_bytes(self->data(), self->device_type(),
               static_cast<size_t>(self->numel()) * dtype_size(self->dtype));
  });
}

}  // namespace

ShimList copy_shims() {
  static const Shim shims[] = {
      shim("aoti_torch_clone", clone), shim("aoti_torch_clone_preserve_strides", clone_preserve_strides),
      shim("aoti_torch_copy_", copy),  shim("aoti_torch_tensor_copy_", tensor_copy),
      shim("aoti_torch_zero_", zero),
  };
  return shim_list(shims);
}

}  // namespace etcuda
