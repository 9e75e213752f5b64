// Element types by their c10::ScalarType codes, the vocabulary of blobs, code images and ExecuTorch alike.
#pragma once

#include <cstddef>
#include <cstdint>

namespace etcuda {

enum DType : int32_t {
  kUInt8 = 0,
  kInt8 = 1,
  kInt16 = 2,
  kInt32 = 3,
  kInt64 = 4,
  kFloat16 = 5,
  kFloat32 = 6,
  kFloat64 = 7,
  kComplex32 = 8,
  kComplex64 = 9,
  kComplex128 = 10,
  kBool = 11,
  kBFloat16 = 15,
  kFloat8E5M2 = 23,
  kFloat8E4M3FN = 24,
  kFloat8E5M2FNUZ = 25,
  kFloat8E4M3FNUZ = 26,
  kUInt16 = 27,
  kUInt32 = 28,
  kUInt64 = 29,
};

// Bytes of one element; 0 for a code that is none of the above.
size_t dtype_size(int32_t dtype);
const char* dtype_name(int32_t dtype);

enum DeviceType : int32_t { kHost = 0, kCuda = 1 };

const char* device_name(int32_t device_type);

}  // namespace etcuda
