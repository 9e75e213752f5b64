#include "core/dtype.h"

namespace etcuda {
namespace {

struct Entry {
  int32_t code;
  size_t size;
  const char* name;
};

constexpr Entry kEntries[] = {
    {kUInt8, 1, "uint8"},
    {kInt8, 1, "int8"},
    {kInt16, 2, "int16"},
    {kInt32, 4, "int32"},
    {kInt64, 8, "int64"},
    {kFloat16, 2, "float16"},
    {kFloat32, 4, "float32"},
    {kFloat64, 8, "float64"},
    {kComplex32, 4, "complex32"},
    {kComplex64, 8, "complex64"},
    {kComplex128, 16, "complex128"},
    {kBool, 1, "bool"},
    {kBFloat16, 2, "bfloat16"},
    {kFloat8E5M2, 1, "float8_e5m2"},
    {kFloat8E4M3FN, 1, "float8_e4m3fn"},
    {kFloat8E5M2FNUZ, 1, "float8_e5m2fnuz"},
    {kFloat8E4M3FNUZ, 1, "float8_e4m3fnuz"},
    {kUInt16, 2, "uint16"},
    {kUInt32, 4, "uint32"},
    {kUInt64, 8, "uint64"},
};

const Entry* find(int32_t code) {
  for (const Entry& entry : kEntries) {
    if (entry.code == code) return &entry;
  }
  return nullptr;
}

}  // namespace

size_t dtype_size(int32_t dtype) {
  const Entry* entry = find(dtype);
  return entry == nullptr ? 0 : entry->size;
}

const char* dtype_name(int32_t dtype) {
  const Entry* entry = find(dtype);
  return entry == nullptr ? "unknown dtype" : entry->name;
}

const char* device_name(int32_t device_type) {
  if (device_type == kHost) return "cpu";
  return device_type == kCuda ? "cuda" : "unknown device";
}

}  // namespace etcuda
