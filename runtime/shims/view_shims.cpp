// Other views of the same storage.
#include "shims/lists.h"

namespace etcuda {
namespace {

AotiError reinterpret(TensorHandle self, int64_t rank, const int64_t* sizes, const int64_t* strides,
                      int64_t offset, TensorHandle* result) {
  return guarded([&] {
    *result = make_view(self->storage, rank, sizes, strides, self->offset + offset, self->dtype).release();
  });
}

AotiError as_strided(TensorHandle self, const int64_t* sizes, const int64_t* strides, TensorHandle* result) {
  return guarded([&] {
    *result = make_view(self->storage, self->rank, sizes, strides, self->offset, self->dtype).release();
  });
}

AotiError alloc_from_pool(TensorHandle self, int64_t offset_bytes, int32_t dtype, int64_t rank,
                          const int64_t* sizes, const int64_t* strides, TensorHandle* result) {
  return guarded([&] {
    const auto size = static_cast<int64_t>(dtype_size(dtype));
    if (size == 0 || offset_bytes % size != 0) {
      fail(ErrorCode::InvalidArgument, "offset %lld in a memory pool does not fit dtype %s.",
           static_cast<long long>(offset_bytes), dtype_name(dtype));
    }
    *result = make_view(self->storage, rank, sizes, strides, offset_bytes / size, dtype).release();
  });
}

AotiError view_dtype(TensorHandle self, int32_t dtype, TensorHandle* result) {
  return guarded([&] {
    const auto from = static_cast<int64_t>(dtype_size(self->dtype));
    const auto to = static_cast<int64_t>(dtype_size(dtype));
    auto view = std::make_unique<Tensor>(*self);
    if (from != to) {
      const auto last = static_cast<size_t>(self->rank - 1);
      bool fits = to != 0 && self->rank > 0 && self->strides[last] == 1 && self->offset * from % to == 0 &&
                  self->sizes[last] * from % to == 0;
      for (size_t i = 0; fits && i < last; ++i) {
        fits = view->strides[i] * from % to == 0;
        view->strides[i] = view->strides[i] * from / to;
      }
      if (!fits) {
        fail(ErrorCode::InvalidArgument, "a tensor of %s with shape %s cannot be viewed as %s.",
             dtype_name(self->dtype), describe_shape(self->rank, self->sizes.data()).c_str(),
             dtype_name(dtype));
      }
      view->sizes[last] = self->sizes[last] * from / to;
      view->offset = self->offset * from / to;
    }
    view->dtype = static_cast<DType>(dtype);
    *result = view.release();
  });
}

}  // namespace

ShimList view_shims() {
  static const Shim shims[] = {
      shim("aoti_torch__reinterpret_tensor", reinterpret),  shim("aoti_torch_as_strided", as_strided),
      shim("aoti_torch__alloc_from_pool", alloc_from_pool), shim("aoti_torch_cpu_view_dtype", view_dtype),
      shim("aoti_torch_cuda_view_dtype", view_dtype),
  };
  return shim_list(shims);
}

}  // namespace etcuda
