// A libcudnn.so.9 for machines without a GPU: descriptors of the graph API as they are set, and a convolution
// with what follows it in plain loops on the fake driver's memory. ETCUDA_FAKE_CUDNN makes it fail: "no
// engine", "no plan", "execute", "bad graph".
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/half.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kNotSupported = 3000, kBadParam = 2000, kExecutionFailed = 5000;
constexpr int64_t kWorkspace = 1024;

struct Descriptor {
  int kind;
  bool finalized = false;
  int64_t index = 0;  // of an engine
  std::map<int, std::vector<char>> attributes;

  template <typename T>
  std::vector<T> list(int attribute) const {
    const auto found = attributes.find(attribute);
    if (found == attributes.end()) return {};
    std::vector<T> values(found->second.size() / sizeof(T));
    std::memcpy(values.data(), found->second.data(), values.size() * sizeof(T));
    return values;
  }
  template <typename T>
  T one(int attribute) const {
    return list<T>(attribute).at(0);
  }
  const Descriptor& object(int attribute) const { return *one<Descriptor*>(attribute); }
};

struct Counts {
  size_t plans, executions, descriptors;
  void* stream;
} counts;
std::string last_error;

bool fails(const char* how) {
  const char* wanted = std::getenv("ETCUDA_FAKE_CUDNN");
  return wanted != nullptr && std::strcmp(wanted, how) == 0;
}

int refuse(int status, const char* why) {
  last_error = why;
  return status;
}

size_t size_of(int type) {
  switch (type) {
    case 0:   // handle
    case 3:   // int64
    case 6:   // pointer
    case 15:  // descriptor
      return 8;
    case 2:
      return 1;
    default:
      return 4;
  }
}

// A tensor of 4 dimensions, and its memory where it is not virtual.
struct Tensor {
  std::vector<int64_t> sizes, strides;
  int type;
  void* data = nullptr;
  std::vector<double> values;

  double at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    const int64_t index = (sizes[0] == 1 ? 0 : n) * strides[0] + (sizes[1] == 1 ? 0 : c) * strides[1] +
                          (sizes[2] == 1 ? 0 : y) * strides[2] + (sizes[3] == 1 ? 0 : x) * strides[3];
    if (data == nullptr) return values[static_cast<size_t>(index)];
    if (type == 0) return static_cast<const float*>(data)[index];
    if (type == 2)
      return static_cast<double>(static_cast<float>(static_cast<const etcuda::Float16*>(data)[index]));
    return static_cast<double>(static_cast<float>(static_cast<const etcuda::BFloat16*>(data)[index]));
  }
  void set(int64_t n, int64_t c, int64_t y, int64_t x, double value) {
    const int64_t index = n * strides[0] + c * strides[1] + y * strides[2] + x * strides[3];
    if (data == nullptr) {
      values[static_cast<size_t>(index)] = value;
    } else if (type == 0) {
      static_cast<float*>(data)[index] = static_cast<float>(value);
    } else if (type == 2) {
      static_cast<etcuda::Float16*>(data)[index] = etcuda::Float16(static_cast<float>(value));
    } else {
      static_cast<etcuda::BFloat16*>(data)[index] = etcuda::BFloat16(static_cast<float>(value));
    }
  }
};

class Execution {
 public:
  explicit Execution(const Descriptor& pack)
      : ids_(pack.list<int64_t>(1000)), pointers_(pack.list<void*>(1001)) {}

  int run(const Descriptor& graph) {
    for (const Descriptor* operation : graph.list<const Descriptor*>(801)) {
      if (operation->kind == 10) {
        convolve(*operation);
      } else {
        pointwise(*operation);
      }
    }
    return 0;
  }

 private:
  Tensor& tensor(const Descriptor& described) {
    Tensor& made = tensors_[described.one<int64_t>(906)];
    if (!made.sizes.empty()) return made;
    made.sizes = described.list<int64_t>(902);
    made.strides = described.list<int64_t>(903);
    made.type = described.one<int>(901);
    if (!described.list<char>(907).empty()) {
      made.values.resize(static_cast<size_t>(made.sizes[0] * made.sizes[1] * made.sizes[2] * made.sizes[3]));
      return made;
    }
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (ids_[i] == described.one<int64_t>(906)) made.data = pointers_[i];
    }
    return made;
  }

  void convolve(const Descriptor& operation) {
    const Tensor &x = tensor(operation.object(704)), &w = tensor(operation.object(703));
    Tensor& y = tensor(operation.object(705));
    const Descriptor& how = operation.object(702);
    const auto stride = how.list<int64_t>(103), padding = how.list<int64_t>(105);
    const auto dilation = how.list<int64_t>(102);
    const int64_t per_group = w.sizes[1], groups = x.sizes[1] / per_group;
    each(y, [&](int64_t n, int64_t c, int64_t row, int64_t column) {
      double sum = 0;
      for (int64_t i = 0; i < per_group * w.sizes[2] * w.sizes[3]; ++i) {
        const int64_t channel = i / (w.sizes[2] * w.sizes[3]), tap = i % (w.sizes[2] * w.sizes[3]);
        const int64_t ty = tap / w.sizes[3], tx = tap % w.sizes[3];
        const int64_t sy = row * stride[0] - padding[0] + ty * dilation[0];
        const int64_t sx = column * stride[1] - padding[1] + tx * dilation[1];
        if (sy < 0 || sy >= x.sizes[2] || sx < 0 || sx >= x.sizes[3]) continue;
        const int64_t from = c / (y.sizes[1] / groups) * per_group + channel;
        sum += x.at(n, from, sy, sx) * w.at(c, channel, ty, tx);
      }
      y.set(n, c, row, column, sum);
    });
  }

  void pointwise(const Descriptor& operation) {
    const Tensor& x = tensor(operation.object(751));
    const int mode = operation.object(750).one<int>(0);
    const Tensor* b = mode == 0 ? &tensor(operation.object(752)) : nullptr;
    Tensor& y = tensor(operation.object(753));
    each(y, [&](int64_t n, int64_t c, int64_t row, int64_t column) {
      const double value = x.at(n, c, row, column);
      y.set(n, c, row, column, b != nullptr ? value + b->at(n, c, row, column) : (value < 0 ? 0 : value));
    });
  }

  template <typename Body>
  static void each(const Tensor& tensor, const Body& body) {
    for (int64_t n = 0; n < tensor.sizes[0]; ++n)
      for (int64_t c = 0; c < tensor.sizes[1]; ++c)
        for (int64_t y = 0; y < tensor.sizes[2]; ++y)
          for (int64_t x = 0; x < tensor.sizes[3]; ++x) body(n, c, y, x);
  }

  const std::vector<int64_t> ids_;
  const std::vector<void*> pointers_;
  std::map<int64_t, Tensor> tensors_;
};

// Engines in the heuristics' order: one that is not deterministic, one for tensor cores, and a plain one.
std::vector<int> notes_of(int64_t engine) {
  if (engine == 0) return {4};
  if (engine == 1) return {0};
  return {};
}

}  // namespace

EXPORT void fake_cudnn_counts(Counts* result) {
  *result = counts;
}

EXPORT size_t cudnnGetVersion() {
  const char* version = std::getenv("ETCUDA_FAKE_CUDNN_VERSION");
  return version == nullptr ? 91300 : static_cast<size_t>(std::atoi(version));
}
EXPORT const char* cudnnGetErrorString(int status) {
  return status == kExecutionFailed ? "CUDNN_STATUS_EXECUTION_FAILED" : "CUDNN_STATUS_NOT_SUPPORTED";
}
EXPORT void cudnnGetLastErrorString(char* words, size_t size) {
  std::strncpy(words, last_error.c_str(), size);
}
EXPORT int cudnnCreate(void** handle) {
  return *handle = &counts, 0;
}
EXPORT int cudnnSetStream(void*, void* stream) {
  return counts.stream = stream, 0;
}
EXPORT int cudnnBackendCreateDescriptor(int kind, Descriptor** descriptor) {
  ++counts.descriptors;
  return *descriptor = new Descriptor{kind, false, 0, {}}, 0;
}
EXPORT int cudnnBackendDestroyDescriptor(Descriptor* descriptor) {
  --counts.descriptors;
  return delete descriptor, 0;
}
EXPORT int cudnnBackendSetAttribute(Descriptor* descriptor, int attribute, int type, int64_t count,
                                    const void* values) {
  if (descriptor->finalized || values == nullptr)
    return refuse(kBadParam, "an attribute of a finalized descriptor");
  const auto* bytes = static_cast<const char*>(values);
  descriptor->attributes[attribute].assign(bytes, bytes + static_cast<size_t>(count) * size_of(type));
  return 0;
}
EXPORT int cudnnBackendFinalize(Descriptor* descriptor) {
  if (descriptor->kind == 15 && fails("bad graph")) return refuse(kBadParam, "the graph is not one");
  if (descriptor->kind == 4 && fails("no engine")) return refuse(kNotSupported, "no engine knows it");
  if (descriptor->kind == 5) {
    if (fails("no plan")) return refuse(kNotSupported, "the engine does not want to");
    // The first that is allowed must be it.
    descriptor->attributes[-1] = descriptor->object(401).attributes.at(-1);
    ++counts.plans;
  }
  descriptor->finalized = true;
  return 0;
}
EXPORT int cudnnBackendGetAttribute(Descriptor* descriptor, int attribute, int type, int64_t capacity,
                                    int64_t* count, void* values) {
  if (attribute == 202) {
    auto** configs = static_cast<Descriptor**>(values);
    for (int64_t i = 0; i < 3 && i < capacity; ++i) {
      configs[i]->index = i;
      configs[i]->attributes[-1] = descriptor->attributes[201];
    }
    return *count = 3, 0;
  }
  if (attribute == 300) {
    (*static_cast<Descriptor**>(values))->index = descriptor->index;
    return *count = 1, 0;
  }
  if (attribute == 1303) {
    const std::vector<int> notes = notes_of(descriptor->index);
    std::memcpy(values, notes.data(), notes.size() * sizeof(int));
    return *count = static_cast<int64_t>(notes.size()), 0;
  }
  if (attribute == 402 && type == 3) {
    return *count = 1, *static_cast<int64_t*>(values) = kWorkspace, 0;
  }
  return refuse(kBadParam, "an attribute that it has not");
}
EXPORT int cudnnBackendExecute(void*, Descriptor* plan, Descriptor* pack) {
  if (fails("execute")) return refuse(kExecutionFailed, "the kernel did not start");
  ++counts.executions;
  auto* workspace = static_cast<char*>(pack->one<void*>(1003));
  std::memset(workspace, 0x5a, kWorkspace);
  return Execution(*pack).run(plan->object(-1));
}
