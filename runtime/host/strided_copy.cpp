#include "host/strided_copy.h"

#include <cstring>

#include "core/failure.h"
#include "core/half.h"

namespace etcuda {
namespace {

// Dimensions of size 1 dropped, neighbours merged where both sides step evenly.
struct Loop {
  int64_t sizes[kMaxTensorRank];
  int64_t destination[kMaxTensorRank];
  int64_t source[kMaxTensorRank];
  int rank = 0;
};

Loop collapse(int64_t rank, const int64_t* sizes, const int64_t* destination, const int64_t* source) {
  Loop loop;
  for (int64_t i = 0; i < rank; ++i) {
    if (sizes[i] == 1) continue;
    if (loop.rank > 0) {
      const int last = loop.rank - 1;
      if (loop.destination[last] == destination[i] * sizes[i] && loop.source[last] == source[i] * sizes[i]) {
        loop.sizes[last] *= sizes[i];
        loop.destination[last] = destination[i];
        loop.source[last] = source[i];
        continue;
      }
    }
    loop.sizes[loop.rank] = sizes[i];
    loop.destination[loop.rank] = destination[i];
    loop.source[loop.rank] = source[i];
    ++loop.rank;
  }
  return loop;
}

// Calls row(destination, source, n, destination_stride, source_stride) for each innermost row.
template <typename Row>
void for_each_row(const Loop& loop, char* destination, const char* source, int64_t destination_size,
                  int64_t source_size, const Row& row) {
  if (loop.rank == 0) {
    row(destination, source, int64_t{1}, int64_t{1}, int64_t{1});
    return;
  }
  const int inner = loop.rank - 1;
  int64_t index[kMaxTensorRank] = {};
  int64_t rows = 1;
  for (int i = 0; i < inner; ++i) rows *= loop.sizes[i];
  for (int64_t r = 0; r < rows; ++r) {
    int64_t destination_offset = 0;
    int64_t source_offset = 0;
    for (int i = 0; i < inner; ++i) {
      destination_offset += index[i] * loop.destination[i];
      source_offset += index[i] * loop.source[i];
    }
    row(destination + destination_offset * destination_size, source + source_offset * source_size,
        loop.sizes[inner], loop.destination[inner], loop.source[inner]);
    for (int i = inner; i-- > 0;) {
      if (++index[i] < loop.sizes[i]) break;
      index[i] = 0;
    }
  }
}

template <typename T>
void copy_row(char* destination, const char* source, int64_t n, int64_t destination_stride,
              int64_t source_stride) {
  if (destination_stride == 1 && source_stride == 1) {
    std::memmove(destination, source, static_cast<size_t>(n) * sizeof(T));
    return;
  }
  auto* to = reinterpret_cast<T*>(destination);
  const auto* from = reinterpret_cast<const T*>(source);
  for (int64_t i = 0; i < n; ++i) to[i * destination_stride] = from[i * source_stride];
}

struct Bytes16 {
  uint64_t words[2];
};

template <typename T>
double as_double(const void* source) {
  T value;
  std::memcpy(&value, source, sizeof(T));
  if constexpr (std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>) {
    return static_cast<double>(static_cast<float>(value));
  } else {
    return static_cast<double>(value);
  }
}

template <typename T>
void put(void* destination, T value) {
  std::memcpy(destination, &value, sizeof(T));
}

bool is_integral(DType dtype) {
  switch (dtype) {
    case kUInt8:
    case kInt8:
    case kInt16:
    case kInt32:
    case kInt64:
    case kBool:
    case kUInt16:
    case kUInt32:
    case kUInt64:
      return true;
    default:
      return false;
  }
}

int64_t read_integer(const void* source, DType dtype) {
  int64_t value = 0;
  switch (dtype) {
    case kInt8:
      return static_cast<const int8_t*>(source)[0];
    case kInt16: {
      int16_t narrow;
      std::memcpy(&narrow, source, 2);
      return narrow;
    }
    case kInt32: {
      int32_t narrow;
      std::memcpy(&narrow, source, 4);
      return narrow;
    }
    default:
      // Little endian: the unsigned types are the low bytes of the wide one.
      std::memcpy(&value, source, dtype_size(dtype));
      return value;
  }
}

double read_real(const void* source, DType dtype) {
  switch (dtype) {
    case kFloat16:
      return as_double<Float16>(source);
    case kBFloat16:
      return as_double<BFloat16>(source);
    case kFloat32:
      return as_double<float>(source);
    case kFloat64:
      return as_double<double>(source);
    default:
      break;
  }
  fail(ErrorCode::NotSupported, "a value of dtype %s cannot be converted to another dtype.",
       dtype_name(dtype));
}

// The cast of a value outside the target's range is undefined in C++; saturate instead.
int64_t to_integer(double value) {
  if (!(value == value)) return 0;
  if (value >= 9.2233720368547758e18) return INT64_MAX;
  if (value <= -9.2233720368547758e18) return INT64_MIN;
  return static_cast<int64_t>(value);
}

}  // namespace

void convert_scalar(void* destination, DType destination_dtype, const void* source, DType source_dtype) {
  const bool from_integer = is_integral(source_dtype);
  const int64_t integer = from_integer ? read_integer(source, source_dtype) : 0;
  const double real = from_integer
                          ? (source_dtype == kUInt64 ? static_cast<double>(static_cast<uint64_t>(integer))
                                                     : static_cast<double>(integer))
                          : read_real(source, source_dtype);
  if (destination_dtype == kBool) {
    put<uint8_t>(destination, from_integer ? integer != 0 : real != 0);
  } else if (is_integral(destination_dtype)) {
    const int64_t wide = from_integer ? integer : to_integer(real);
    std::memcpy(destination, &wide, dtype_size(destination_dtype));
  } else if (destination_dtype == kFloat32) {
    put(destination, static_cast<float>(real));
  } else if (destination_dtype == kFloat64) {
    put(destination, real);
  } else if (destination_dtype == kFloat16) {
    put(destination, Float16(static_cast<float>(real)));
  } else if (destination_dtype == kBFloat16) {
    put(destination, BFloat16(static_cast<float>(real)));
  } else {
    fail(ErrorCode::NotSupported, "a value cannot be converted to dtype %s.", dtype_name(destination_dtype));
  }
}

void strided_copy(int64_t rank, const int64_t* sizes, const StridedView& destination,
                  const StridedView& source) {
  for (int64_t i = 0; i < rank; ++i) {
    if (sizes[i] == 0) return;
  }
  const Loop loop = collapse(rank, sizes, destination.strides, source.strides);
  auto* to = static_cast<char*>(destination.data);
  const auto* from = static_cast<const char*>(source.data);
  const auto destination_size = static_cast<int64_t>(dtype_size(destination.dtype));
  const auto source_size = static_cast<int64_t>(dtype_size(source.dtype));
  if (destination.dtype != source.dtype) {
    for_each_row(loop, to, from, destination_size, source_size,
                 [&](char* row_to, const char* row_from, int64_t n, int64_t to_stride, int64_t from_stride) {
                   for (int64_t i = 0; i < n; ++i) {
                     convert_scalar(row_to + i * to_stride * destination_size, destination.dtype,
                                    row_from + i * from_stride * source_size, source.dtype);
                   }
                 });
    return;
  }
  switch (destination_size) {
    case 1:
      return for_each_row(loop, to, from, 1, 1, copy_row<uint8_t>);
    case 2:
      return for_each_row(loop, to, from, 2, 2, copy_row<uint16_t>);
    case 4:
      return for_each_row(loop, to, from, 4, 4, copy_row<uint32_t>);
    case 8:
      return for_each_row(loop, to, from, 8, 8, copy_row<uint64_t>);
    default:
      return for_each_row(loop, to, from, 16, 16, copy_row<Bytes16>);
  }
}

}  // namespace etcuda
