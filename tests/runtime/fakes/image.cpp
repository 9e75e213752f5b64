// A code image written by hand, so that the runtime is tested without the exporter. It keeps the contract of
// docs/blob.md: state += x; y = state * weight, elementwise on a vector of float32.
//
// The first element of x asks for trouble: see Trouble. Built with -DETCUDA_FAKE_CUDA it runs "kernels" of
// the fake driver in fake_cuda.cpp and its tensors are on the GPU. Other macros break the contract on
// purpose.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(FAKE_ABI)
#define FAKE_ABI 1
#endif

using Tensor = struct TensorOpaque*;
using Error = int32_t;

namespace {

enum Trouble {
  kThrow = -101,
  kCheck = -102,
  kHuge = -103,
  kInts = -104,
  kStrided = -105,
  kTooLong = -106,
  kNone = -107
};

enum Slot {
  kEmptyStrided,
  kDelete,
  kDataPtr,
  kSizes,
  kNewHandle,
  kReinterpret,
  kCheckShim,
  kItem,
  kMmOut,
#if defined(ETCUDA_FAKE_CUDA)
  kModuleLoad,
  kGetFunction,
  kLaunch,
  kErrorString,
  kEventSynchronize,
#endif
  kSlots
};

}  // namespace

EXPORT const unsigned etcuda_image_abi;
const unsigned etcuda_image_abi = FAKE_ABI;

EXPORT const char* const etcuda_image_imports[];
const char* const etcuda_image_imports[] = {"aoti_torch_empty_strided",
                                            "aoti_torch_delete_tensor_object",
                                            "aoti_torch_get_data_ptr",
                                            "aoti_torch_get_sizes",
                                            "aoti_torch_new_tensor_handle",
                                            "aoti_torch__reinterpret_tensor",
                                            "aoti_torch_check",
                                            "aoti_torch_item_float32",
#if defined(ETCUDA_FAKE_CUDA)
                                            "aoti_torch_cuda_mm_out",
                                            "cuModuleLoadData",
                                            "cuModuleGetFunction",
                                            "cuLaunchKernel",
                                            "cuGetErrorString",
                                            "cudaEventSynchronize",
#else
                                            "aoti_torch_cpu_mm_out",
#endif
#if defined(FAKE_MISSING_IMPORT)
                                            "aoti_torch_from_the_future",
                                            "aoti_torch_from_beyond",
#endif
                                            nullptr};

EXPORT void* etcuda_image_slots[];
void* etcuda_image_slots[kSlots + 2];

namespace {

template <typename Function>
Function* slot(Slot index) {
  return reinterpret_cast<Function*>(etcuda_image_slots[index]);
}

void check(Error status) {
  if (status != 0) throw std::runtime_error("a shim failed");
}

Tensor empty(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device) {
  Tensor result = nullptr;
  check(slot<Error(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Tensor*)>(
      kEmptyStrided)(rank, sizes, strides, dtype, device, 0, &result));
  return result;
}

void* data(Tensor tensor) {
  void* result = nullptr;
  check(slot<Error(Tensor, void**)>(kDataPtr)(tensor, &result));
  return result;
}

int64_t length(Tensor tensor) {
  int64_t* sizes = nullptr;
  check(slot<Error(Tensor, int64_t**)>(kSizes)(tensor, &sizes));
  return sizes[0];
}

struct Owned {
  Tensor tensor;
  ~Owned() {
    if (tensor != nullptr) slot<Error(Tensor)>(kDelete)(tensor);
  }
  Tensor release() {
    Tensor released = tensor;
    tensor = nullptr;
    return released;
  }
};

float first_element(Tensor tensor) {
  const int64_t one = 1;
  Owned view{nullptr};
  check(slot<Error(Tensor, int64_t, const int64_t*, const int64_t*, int64_t, Tensor*)>(kReinterpret)(
      tensor, 1, &one, &one, 0, &view.tensor));
  float value = 0;
  check(slot<Error(Tensor, float*)>(kItem)(view.tensor, &value));
  return value;
}

struct Container {
  Tensor weight = nullptr;
  Tensor state = nullptr;
#if defined(ETCUDA_FAKE_CUDA)
  void* accumulate = nullptr;
  bool is_folded = false;
#endif
};

#if defined(ETCUDA_FAKE_CUDA)
constexpr int32_t kDevice = 1;

void load_kernels(Container& container) {
  void* module = nullptr;
  check(slot<int(void**, const void*)>(kModuleLoad)(&module, "cubin"));
  check(slot<int(void**, void*, const char*)>(kGetFunction)(&container.accumulate, module, "accumulate"));
}

// As AOTInductor's container does in the first run with other constants, even if there is nothing to fold.
void fold(Container& container) {
  if (!container.is_folded) check(slot<int(void*)>(kEventSynchronize)(nullptr));
  container.is_folded = true;
}

void compute(Container& container, Tensor x, Tensor y, int64_t n, void* stream) {
  void* addresses[4] = {data(x), data(container.state), data(container.weight), data(y)};
  void* arguments[5] = {&addresses[0], &addresses[1], &addresses[2], &addresses[3], &n};
  using Launch =
      int(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  if (slot<Launch>(kLaunch)(container.accumulate, 1, 1, 1, 128, 1, 1, 0, stream, arguments, nullptr) != 0) {
    throw std::runtime_error("launch failed");
  }
}
#else
constexpr int32_t kDevice = 0;

void load_kernels(Container&) {}

void fold(Container&) {}

void compute(Container& container, Tensor x, Tensor y, int64_t n, void*) {
  const auto* in = static_cast<const float*>(data(x));
  auto* state = static_cast<float*>(data(container.state));
  const auto* weight = static_cast<const float*>(data(container.weight));
  auto* out = static_cast<float*>(data(y));
  for (int64_t i = 0; i < n; ++i) {
    state[i] += in[i];
    out[i] = state[i] * weight[i];
  }
}
#endif

Tensor make_output(Container& container, Tensor x, void* stream) {
  const int64_t n = length(x);
  const int64_t one = 1;
#if defined(FAKE_CAPTURABLE)
  // A branch on the size: at 5 a value is read on the host, so only calls of other sizes can be captured.
  const float request = n == 5 ? first_element(x) : 0;
#else
  const float request = n > 0 ? first_element(x) : 0;
#endif
  if (request == kThrow) throw std::runtime_error("thrown by the image");
  if (request == kCheck) {
    slot<void(bool, const char*, const char*, uint32_t, const char*)>(kCheckShim)(
        false, "run", "image.cpp", 7, "the first element is forbidden");
  }
  if (request == kHuge) {
    const int64_t huge = int64_t{1} << 40;
    Owned never{empty(1, &huge, &one, 6, kDevice)};
  }
  if (request == kInts) return empty(1, &n, &one, 3, kDevice);
  if (request == kNone) return nullptr;
  const int64_t stride = request == kStrided ? 3 : 1;
  const int64_t count = request == kTooLong ? n + 1 : n;
  Owned y{empty(1, &count, &one, 6, kDevice)};
  compute(container, x, y.tensor, n, stream);
  if (stride == 1) return y.release();
  // The same values, three elements apart, as an output that is not dense.
  const int64_t sizes[2] = {n, 3};
  const int64_t strides[2] = {3, 1};
  const int64_t row[2] = {1, 3};
  const int64_t as_column[2] = {n, 1};
  const int64_t column_strides[2] = {1, n > 0 ? n : 1};
  Owned wide{empty(2, sizes, strides, 6, kDevice)};
  Owned left{nullptr}, right{empty(2, row, strides, 6, kDevice)}, result{nullptr};
  check(slot<Error(Tensor, int64_t, const int64_t*, const int64_t*, int64_t, Tensor*)>(kReinterpret)(
      y.tensor, 2, as_column, column_strides, 0, &left.tensor));
  // The fake driver's device memory can be written from here.
  for (int i = 0; i < 3; ++i) static_cast<float*>(data(right.tensor))[i] = 1;
  using Mm = Error(Tensor, Tensor, Tensor);
  check(slot<Mm>(kMmOut)(wide.tensor, left.tensor, right.tensor));
  check(slot<Error(Tensor, int64_t, const int64_t*, const int64_t*, int64_t, Tensor*)>(kReinterpret)(
      wide.tensor, 1, &n, &stride, 1, &result.tensor));
  return result.release();
}

template <typename Body>
Error guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // namespace

EXPORT Error AOTInductorModelContainerCreateWithDevice(Container** container, size_t, const char* device,
                                                       const char*) {
  return guarded([&] {
    if (std::string(device).rfind(kDevice == 0 ? "cpu" : "cuda", 0) != 0)
      throw std::runtime_error("wrong device");
    *container = new Container();
    load_kernels(**container);
  });
}

EXPORT Error AOTInductorModelContainerDelete(Container* container) {
  return guarded([&] { delete container; });
}

EXPORT Error AOTInductorModelContainerGetNumInputs(Container*, size_t* count) {
  *count = 1;
  return 0;
}

EXPORT Error AOTInductorModelContainerGetNumOutputs(Container*, size_t* count) {
  *count = 1;
  return 0;
}

EXPORT Error AOTInductorModelContainerGetNumConstants(Container*, size_t* count) {
  *count = 2;
  return 0;
}

EXPORT Error AOTInductorModelContainerGetConstantName(Container*, size_t index, const char** name) {
  *name = index == 0 ? "weight" : "state";
  return 0;
}

EXPORT Error AOTInductorModelContainerGetConstantFromFolded(Container*, size_t, bool* folded) {
  *folded = false;
  return 0;
}

#if defined(FAKE_DESCRIPTION)
EXPORT const uint8_t etcuda_image_description[32];
const uint8_t etcuda_image_description[32] = {};
#endif

#if defined(FAKE_SIZES)
// Weight and state are eight elements of float32.
EXPORT Error AOTInductorModelContainerGetConstantDtype(Container*, size_t, int32_t* dtype) {
  *dtype = 6;
  return 0;
}

EXPORT Error AOTInductorModelContainerGetConstantDataSize(Container*, size_t, size_t* nbytes) {
  *nbytes = 64;
  return 0;
}
#endif

struct Entry {
  const char* name;
  Tensor tensor;
};

EXPORT Error AOTInductorModelContainerUpdateUserManagedConstantBufferPairs(Container* container,
                                                                           const Entry* entries, size_t count,
                                                                           bool, bool) {
  for (size_t i = 0; i < count; ++i) {
    (entries[i].name == std::string("weight") ? container->weight : container->state) = entries[i].tensor;
  }
#if defined(ETCUDA_FAKE_CUDA)
  container->is_folded = false;
#endif
  return 0;
}

EXPORT Error AOTInductorModelContainerRunSingleThreaded(Container* container, Tensor* inputs, size_t,
                                                        Tensor* outputs, size_t, void* stream, void*) {
  return guarded([&] {
    Owned x{inputs[0]};
    inputs[0] = nullptr;
    fold(*container);
    outputs[0] = make_output(*container, x.tensor, stream);
  });
}

#if defined(FAKE_LAST_ERROR)
EXPORT Error AOTInductorGetLastError(const char** text) {
  *text = "the image's own words";
  return 0;
}
#endif
