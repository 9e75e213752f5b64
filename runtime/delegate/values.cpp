#include "delegate/values.h"

#include <executorch/runtime/core/exec_aten/util/tensor_util.h>

#include <cinttypes>
#include <cstring>

#include "core/failure.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

std::string describe_bounds(const ValueSpec& spec) {
  std::string text = "[";
  for (const DimSpec& dim : spec.dims) {
    if (text.size() > 1) text += ", ";
    text += dim.min == dim.max ? std::to_string(dim.min)
                               : std::to_string(dim.min) + ".." + std::to_string(dim.max);
  }
  return text + "]";
}

const char* kind_name(const EValue& value) {
  if (value.isNone()) return "None";
  if (value.isInt()) return "an int";
  if (value.isDouble()) return "a float";
  if (value.isBool()) return "a bool";
  if (value.isString()) return "a string";
  return "a list";
}

void check_dims(const ValueSpec& spec, const char* role, size_t index, int64_t rank, const int64_t* sizes,
                ErrorCode code, const char* advice) {
  if (static_cast<size_t>(rank) != spec.dims.size()) {
    fail(code, "%s %zu (%s): expected %zu dimensions %s, got %" PRId64 ": %s. %s", role, index,
         spec.name.c_str(), spec.dims.size(), describe_bounds(spec).c_str(), rank,
         describe_shape(rank, sizes).c_str(), advice);
  }
  for (size_t i = 0; i < spec.dims.size(); ++i) {
    const DimSpec& dim = spec.dims[i];
    if (sizes[i] < dim.min || sizes[i] > dim.max) {
      fail(code,
           "%s %zu (%s): dimension %zu has size %" PRId64 ", the model was exported for %s; got shape %s. %s",
           role, index, spec.name.c_str(), i, sizes[i], describe_bounds(spec).c_str(),
           describe_shape(rank, sizes).c_str(), advice);
    }
  }
}

void strides_of(const ValueSpec& spec, const int64_t* sizes, int64_t* strides) {
  int64_t step = 1;
  for (size_t i = spec.dim_order.size(); i-- > 0;) {
    const uint8_t dim = spec.dim_order[i];
    strides[dim] = step;
    step *= std::max<int64_t>(sizes[dim], 1);
  }
}

std::string describe_order(const ValueSpec& spec) {
  std::string text = "(";
  for (const uint8_t dim : spec.dim_order)
    text += std::string(text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + ")";
}

ArgumentView view_of(const EtTensor& tensor) {
  ArgumentView view;
  if (tensor.dim() > kMaxTensorRank) {
    fail(ErrorCode::InvalidArgument, "a tensor of %zd dimensions is not supported.", tensor.dim());
  }
  view.rank = tensor.dim();
  view.nbytes = tensor.nbytes();
  view.data = tensor.mutable_data_ptr();
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  for (size_t i = 0; i < static_cast<size_t>(view.rank); ++i) {
    view.sizes[i] = sizes[i];
    view.strides[i] = strides.data() == nullptr ? 0 : strides[i];
  }
  const auto device = tensor.unsafeGetTensorImpl()->device();
  view.device = device.is_cpu() ? kHost : kCuda;
  view.device_index = view.device == kHost ? 0 : std::max<int>(device.index(), 0);
  return view;
}

ArgumentView bind_number(const ValueSpec& spec, size_t index, const EValue& value, void* scalar) {
  if (!spec.dims.empty() || !(value.isInt() || value.isDouble() || value.isBool())) {
    fail(ErrorCode::InvalidArgument,
         "input %zu (%s): expected a tensor of %s with shape %s, got %s. Pass a tensor, or export the model "
         "with "
         "this argument as a constant.",
         index, spec.name.c_str(), dtype_name(spec.dtype), describe_bounds(spec).c_str(), kind_name(value));
  }
  if (value.isDouble()) {
    const double number = value.toDouble();
    convert_scalar(scalar, spec.dtype, &number, kFloat64);
  } else {
    const int64_t number = value.isInt() ? value.toInt() : static_cast<int64_t>(value.toBool());
    convert_scalar(scalar, spec.dtype, &number, kInt64);
  }
  ArgumentView view;
  view.data = scalar;
  view.nbytes = dtype_size(spec.dtype);
  return view;
}

}  // namespace

int64_t device_address(const EtTensor& tensor) {
  if (tensor.unsafeGetTensorImpl()->device().is_cpu()) return 0;
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()));
}

ArgumentView check_input(const ValueSpec& spec, size_t index, const EValue& value, void* scalar) {
  if (!value.isTensor()) return bind_number(spec, index, value, scalar);
  const EtTensor& tensor = value.toTensor();
  const auto dtype = static_cast<int32_t>(tensor.scalar_type());
  if (dtype != spec.dtype) {
    fail(ErrorCode::InvalidArgument,
         "input %zu (%s): expected dtype %s, got %s. Convert the tensor before passing it.", index,
         spec.name.c_str(), dtype_name(spec.dtype), dtype_name(dtype));
  }
  ArgumentView view = view_of(tensor);
  check_dims(spec, "input", index, view.rank, view.sizes, ErrorCode::InvalidArgument,
             "Pass a tensor within these bounds, or export the model with wider ones.");
  int64_t expected[kMaxTensorRank] = {};
  strides_of(spec, view.sizes, expected);
  for (size_t i = 0; view.nbytes != 0 && i < spec.dims.size(); ++i) {
    if (view.sizes[i] == 1 || view.strides[i] == expected[i]) continue;
    fail(ErrorCode::InvalidArgument,
         "input %zu (%s): expected the dimensions in memory in the order %s with strides %s, got strides %s. "
         "Pass a "
         "tensor in the memory format of the export example.",
         index, spec.name.c_str(), describe_order(spec).c_str(), describe_shape(view.rank, expected).c_str(),
         describe_shape(view.rank, view.strides).c_str());
  }
  std::memcpy(view.strides, expected, sizeof(expected));
  if (view.data == nullptr && view.nbytes != 0) {
    fail(ErrorCode::InvalidArgument, "input %zu (%s): the tensor has no data. Set the method's inputs first.",
         index, spec.name.c_str());
  }
  return view;
}

void check_output(const ValueSpec& spec, size_t index, const Tensor& tensor) {
  const char* advice = "The compiled model does not do what its description says: export it again.";
  if (tensor.dtype != spec.dtype) {
    fail(ErrorCode::Internal, "output %zu (%s): expected dtype %s, got %s. %s", index, spec.name.c_str(),
         dtype_name(spec.dtype), dtype_name(tensor.dtype), advice);
  }
  check_dims(spec, "output", index, tensor.rank, tensor.sizes.data(), ErrorCode::Internal, advice);
}

ArgumentView prepare_output(const ValueSpec& spec, size_t index, EValue& value, const Tensor& tensor) {
  if (!value.isTensor()) {
    fail(ErrorCode::InvalidProgram,
         "output %zu (%s): expected a tensor in the program, got %s. Export it again.", index,
         spec.name.c_str(), kind_name(value));
  }
  EtTensor& output = value.toTensor();
  const auto dtype = static_cast<int32_t>(output.scalar_type());
  if (dtype != spec.dtype || output.dim() != tensor.rank) {
    fail(ErrorCode::InvalidArgument,
         "output %zu (%s): expected a tensor of %s with %" PRId64
         " dimensions, got %s with %zd. Pass a matching "
         "output tensor.",
         index, spec.name.c_str(), dtype_name(spec.dtype), tensor.rank, dtype_name(dtype), output.dim());
  }
  ::executorch::aten::SizesType sizes[kMaxTensorRank] = {};
  for (size_t i = 0; i < static_cast<size_t>(tensor.rank); ++i) {
    sizes[i] = static_cast<::executorch::aten::SizesType>(tensor.sizes[i]);
  }
  const ErrorCode resized =
      ::executorch::runtime::resize_tensor(output, {sizes, static_cast<size_t>(tensor.rank)});
  if (resized != ErrorCode::Ok) {
    fail(resized,
         "output %zu (%s): the program's memory plan has no room for shape %s. Export the model with the "
         "upper bounds "
         "that its inputs need.",
         index, spec.name.c_str(), describe_shape(tensor.rank, tensor.sizes.data()).c_str());
  }
  ArgumentView view = view_of(output);
  if (view.data == nullptr && view.nbytes != 0) {
    fail(ErrorCode::InvalidArgument,
         "output %zu (%s): the tensor has no memory. Set the method's outputs first.", index,
         spec.name.c_str());
  }
  return view;
}

}  // namespace etcuda
