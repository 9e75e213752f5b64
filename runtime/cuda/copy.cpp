#include "cuda/copy.h"

#include <cstring>

#include "core/failure.h"
#include "cuda/capture.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

CUdeviceptr device_address(const void* address) {
  return reinterpret_cast<CUdeviceptr>(address);
}

// Copies row by row through the driver's pitched copy. Sizes and strides in elements.
class DeviceCopy {
 public:
  DeviceCopy(const Tensor& destination, const int64_t* source_strides)
      : size_(static_cast<int64_t>(dtype_size(destination.dtype))) {
    for (size_t i = 0; i < static_cast<size_t>(destination.rank); ++i) {
      const int64_t n = destination.sizes[i];
      if (n == 1) continue;
      const int64_t to = destination.strides[i];
      const int64_t from = source_strides[i];
      if (rank_ > 0 && to_[rank_ - 1] == to * n && from_[rank_ - 1] == from * n) {
        sizes_[rank_ - 1] *= n;
        to_[rank_ - 1] = to;
        from_[rank_ - 1] = from;
        continue;
      }
      sizes_[rank_] = n;
      to_[rank_] = to;
      from_[rank_] = from;
      ++rank_;
    }
    width_ = size_;
    if (rank_ > 0 && to_[rank_ - 1] == 1 && from_[rank_ - 1] == 1) width_ = sizes_[--rank_] * size_;
    height_ = 1;
    if (rank_ > 0 && to_[rank_ - 1] * size_ >= width_ && from_[rank_ - 1] * size_ >= width_) {
      --rank_;
      height_ = sizes_[rank_];
      to_pitch_ = to_[rank_] * size_;
      from_pitch_ = from_[rank_] * size_;
    }
  }

  void run(char* to, const char* from) const { dimension(0, to, from); }

 private:
  void dimension(int level, char* to, const char* from) const {
    if (level == rank_) return plane(to, from);
    for (int64_t i = 0; i < sizes_[level]; ++i) {
      dimension(level + 1, to + i * to_[level] * size_, from + i * from_[level] * size_);
    }
  }

  void plane(char* to, const char* from) const {
    Driver& driver = Driver::require("a device copy");
    CUstream stream = current_cuda().stream;
    if (height_ == 1) {
      driver.check(driver.cuMemcpyDtoDAsync_v2(device_address(to), device_address(from),
                                               static_cast<size_t>(width_), stream),
                   "cuMemcpyDtoDAsync");
      return;
    }
    CudaMemcpy2D copy{};
    copy.src_memory_type = kMemoryTypeDevice;
    copy.src_device = device_address(from);
    copy.src_pitch = static_cast<size_t>(from_pitch_);
    copy.dst_memory_type = kMemoryTypeDevice;
    copy.dst_device = device_address(to);
    copy.dst_pitch = static_cast<size_t>(to_pitch_);
    copy.width = static_cast<size_t>(width_);
    copy.height = static_cast<size_t>(height_);
    driver.check(driver.cuMemcpy2DAsync_v2(&copy, stream), "cuMemcpy2DAsync");
  }

  const int64_t size_;
  int64_t sizes_[kMaxTensorRank] = {};
  int64_t to_[kMaxTensorRank] = {};
  int64_t from_[kMaxTensorRank] = {};
  int rank_ = 0;
  int64_t width_ = 0;
  int64_t height_ = 1;
  int64_t to_pitch_ = 0;
  int64_t from_pitch_ = 0;
};

bool same_strides(const Tensor& a, const Tensor& b) {
  for (size_t i = 0; i < static_cast<size_t>(a.rank); ++i) {
    if (a.sizes[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

// A dense block of memory in some order of its dimensions: as many elements as the distance they span.
bool is_dense(const Tensor& tensor) {
  return tensor.extent() == tensor.numel();
}

// One side on the host: copies whole dense blocks, or through a host copy of the span that the device side
// covers.
void copy_across(const Tensor& destination, const Tensor& source) {
  const size_t element = dtype_size(source.dtype);
  if (destination.dtype == source.dtype && same_strides(destination, source) && is_dense(source)) {
    copy_bytes(destination.data(), destination.device_type(), source.data(), source.device_type(),
               static_cast<size_t>(source.numel()) * element);
    synchronize(kCuda);
    return;
  }
  if (source.device_type() == kCuda) {
    const auto span = static_cast<size_t>(source.extent()) * element;
    Tensor staged = source;
    staged.offset = 0;
    staged.storage = allocate_storage(span, kHost, 0);
    copy_bytes(staged.storage->data, kHost, source.data(), kCuda, span);
    synchronize(kCuda);
    copy_tensor(destination, staged);
    return;
  }
  // The span may hold elements that are not part of the view, so they are fetched before they are written
  // back.
  const size_t target_element = dtype_size(destination.dtype);
  const auto span = static_cast<size_t>(destination.extent()) * target_element;
  Tensor staged = destination;
  staged.offset = 0;
  staged.storage = allocate_storage(span, kHost, 0);
  if (!is_dense(destination)) {
    copy_bytes(staged.storage->data, kHost, destination.data(), kCuda, span);
    synchronize(kCuda);
  }
  copy_tensor(staged, source);
  copy_bytes(destination.data(), kCuda, staged.storage->data, kHost, span);
  synchronize(kCuda);
}

}  // namespace

void copy_bytes(void* destination, DeviceType to, const void* source, DeviceType from, size_t nbytes) {
  if (nbytes == 0) return;
  if (to == kHost && from == kHost) {
    std::memmove(destination, source, nbytes);
    return;
  }
  Driver& driver = Driver::require("a device copy");
  CUstream stream = current_cuda().stream;
  if (to == kHost) {
    driver.check(driver.cuMemcpyDtoHAsync_v2(destination, device_address(source), nbytes, stream),
                 "cuMemcpyDtoHAsync");
  } else if (from == kHost) {
    driver.check(driver.cuMemcpyHtoDAsync_v2(device_address(destination), source, nbytes, stream),
                 "cuMemcpyHtoDAsync");
  } else {
    driver.check(
        driver.cuMemcpyDtoDAsync_v2(device_address(destination), device_address(source), nbytes, stream),
        "cuMemcpyDtoDAsync");
  }
}

void zero_bytes(void* data, DeviceType device, size_t nbytes) {
  if (nbytes == 0) return;
  if (device == kHost) {
    std::memset(data, 0, nbytes);
    return;
  }
  Driver& driver = Driver::require("clearing device memory");
  driver.check(driver.cuMemsetD8Async(device_address(data), 0, nbytes, current_cuda().stream),
               "cuMemsetD8Async");
}

void synchronize(DeviceType device) {
  if (device != kCuda) return;
  refuse_in_capture("a copy between the GPU and the host, which reads a value there,");
  Driver& driver = Driver::require("waiting for a stream");
  driver.check(driver.cuStreamSynchronize(current_cuda().stream), "cuStreamSynchronize");
}

void copy_tensor(const Tensor& destination, const Tensor& source) {
  // Source dimensions align with the destination's last ones; missing ones and those of size 1 repeat.
  int64_t strides[kMaxTensorRank] = {};
  const int64_t lead = destination.rank - source.rank;
  bool matches = lead >= 0;
  for (int64_t i = 0; matches && i < source.rank; ++i) {
    const auto s = static_cast<size_t>(i);
    const auto d = static_cast<size_t>(i + lead);
    matches = source.sizes[s] == destination.sizes[d] || source.sizes[s] == 1;
    strides[d] = source.sizes[s] == destination.sizes[d] ? source.strides[s] : 0;
  }
  if (!matches) {
    fail(ErrorCode::InvalidArgument, "a tensor of shape %s cannot be copied into one of shape %s.",
         describe_shape(source.rank, source.sizes.data()).c_str(),
         describe_shape(destination.rank, destination.sizes.data()).c_str());
  }
  if (destination.numel() == 0) return;
  const bool to_device = destination.device_type() == kCuda;
  const bool from_device = source.device_type() == kCuda;
  if (!to_device && !from_device) {
    strided_copy(destination.rank, destination.sizes.data(),
                 {destination.data(), destination.strides.data(), destination.dtype},
                 {source.data(), strides, source.dtype});
    return;
  }
  if (to_device && from_device) {
    if (destination.dtype != source.dtype) {
      fail(ErrorCode::NotSupported,
           "a copy on the GPU from %s to %s needs a kernel that this runtime does not have.",
           dtype_name(source.dtype), dtype_name(destination.dtype));
    }
    DeviceCopy(destination, strides).run(destination.data_as<char>(), source.data_as<const char>());
    return;
  }
  if (lead != 0 || source.numel() != destination.numel()) {
    // Broadcast on the side of the source, then move.
    Tensor spread = destination;
    spread.offset = 0;
    spread.dtype = source.dtype;
    int64_t step = 1;
    for (auto i = static_cast<size_t>(spread.rank); i-- > 0;) {
      spread.strides[i] = step;
      step *= spread.sizes[i];
    }
    spread.storage = allocate_storage(static_cast<size_t>(step) * dtype_size(source.dtype),
                                      source.device_type(), source.device_index());
    copy_tensor(spread, source);
    copy_across(destination, spread);
    return;
  }
  copy_across(destination, source);
}

}  // namespace etcuda
