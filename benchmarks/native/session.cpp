// A loaded program behind a C interface, so that Python can run it in a process whose profiler sees its
// kernels.
//
// Inputs are int64 tensors. Every function returns null or a message that stays valid until the next call.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

namespace {

struct Session {
  std::unique_ptr<Module> module;
  std::vector<EValue> outputs;
};

thread_local std::string message;

template <typename Function>
const char* guarded(Function function) {
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

// Opens a program; `weights` is the path of its .ptd file, or null.
const char* bench_open(const char* program, const char* weights, void** session) {
  return guarded([&] {
    auto opened = std::make_unique<Session>();
    const std::vector<std::string> files =
        weights ? std::vector<std::string>{weights} : std::vector<std::string>{};
    opened->module = std::make_unique<Module>(program, files, Module::LoadMode::Mmap);
    if (opened->module->load() != executorch::runtime::Error::Ok)
      throw std::runtime_error(std::string(program) + ": loading failed; the log says why");
    *session = opened.release();
  });
}

// Loads a method with its weights.
const char* bench_load(void* session, const char* method) {
  return guarded([&] {
    if (static_cast<Session*>(session)->module->load_method(method) != executorch::runtime::Error::Ok)
      throw std::runtime_error(std::string(method) + ": loading failed; the log says why");
  });
}

// Runs a method once. Input i has ranks[i] sizes, which follow each other in `sizes`. `host_ns` is the time
// of the call by the host's clock, inputs in host memory to outputs in host memory.
const char* bench_call(void* session, const char* method, int32_t count, const int64_t* const* data,
                       const int32_t* ranks, const int32_t* sizes, int64_t* host_ns) {
  return guarded([&] {
    auto& opened = *static_cast<Session*>(session);
    std::vector<TensorPtr> tensors;
    std::vector<EValue> inputs;
    for (int32_t i = 0; i < count; ++i) {
      std::vector<executorch::aten::SizesType> shape(sizes, sizes + ranks[i]);
      sizes += ranks[i];
      inputs.emplace_back(*tensors.emplace_back(make_tensor_ptr(
          std::move(shape), const_cast<int64_t*>(data[i]), executorch::aten::ScalarType::Long)));
    }
    const auto start = std::chrono::steady_clock::now();
    auto result = opened.module->execute(method, inputs);
    const auto end = std::chrono::steady_clock::now();
    if (!result.ok())
      throw std::runtime_error(std::string(method) + ": error " +
                               std::to_string(static_cast<int>(result.error())) + "; the log says why");
    *host_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count();
    opened.outputs = std::move(result.get());
  });
}

// Copies the first output of the last call; `nbytes` must be its size.
const char* bench_output(void* session, void* target, int64_t nbytes) {
  return guarded([&] {
    const auto& outputs = static_cast<Session*>(session)->outputs;
    if (outputs.empty()) throw std::runtime_error("no call has been made");
    const auto tensor = outputs.at(0).toTensor();
    if (static_cast<int64_t>(tensor.nbytes()) != nbytes)
      throw std::runtime_error("expected an output of " + std::to_string(nbytes) + " bytes, got " +
                               std::to_string(tensor.nbytes()));
    std::memcpy(target, tensor.const_data_ptr(), static_cast<size_t>(nbytes));
  });
}

void bench_close(void* session) {
  delete static_cast<Session*>(session);
}

}  // extern "C"
