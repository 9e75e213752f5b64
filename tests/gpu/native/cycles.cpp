// Loads, runs and unloads one program many times, and prints what memory it left in use.
//
// Usage: cycles MODEL.pte METHOD CYCLES DTYPE:SIZES...
// Inputs are zeros. Prints one line of JSON per checkpoint: cycles done, resident bytes of the process, free
// bytes of the GPU, and bytes that etcuda has in use.
#include <dlfcn.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "api.h"

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

namespace {

const std::map<std::string, ScalarType> kDtypes = {{"int64", ScalarType::Long},
                                                   {"float32", ScalarType::Float},
                                                   {"float16", ScalarType::Half},
                                                   {"bfloat16", ScalarType::BFloat16}};

TensorPtr zeros(const std::string& text) {
  const auto colon = text.find(':');
  std::vector<executorch::aten::SizesType> shape;
  size_t nbytes = executorch::runtime::elementSize(kDtypes.at(text.substr(0, colon)));
  std::istringstream list(text.substr(colon + 1));
  for (std::string size; std::getline(list, size, 'x');) {
    shape.push_back(std::stoi(size));
    nbytes *= static_cast<size_t>(shape.back());
  }
  return executorch::extension::make_tensor_ptr(std::move(shape), std::vector<uint8_t>(nbytes),
                                                kDtypes.at(text.substr(0, colon)));
}

long resident_bytes() {
  std::ifstream file("/proc/self/statm");
  long total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

size_t gpu_free_bytes() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) return 0;
  const auto get = reinterpret_cast<int (*)(size_t*, size_t*)>(dlsym(driver, "cuMemGetInfo_v2"));
  size_t free_bytes = 0, total = 0;
  return get != nullptr && get(&free_bytes, &total) == 0 ? free_bytes : 0;
}

uint64_t in_use() {
  EtcudaMemoryStats stats[16];
  const size_t count = etcuda_memory_stats(stats, 16);
  uint64_t bytes = 0;
  for (size_t i = 0; i < count && i < 16; ++i) bytes += stats[i].allocated;
  return bytes;
}

void run(int argc, char** argv) {
  const int cycles = std::stoi(argv[3]);
  std::vector<TensorPtr> tensors;
  std::vector<EValue> inputs;
  for (int i = 4; i < argc; ++i) inputs.emplace_back(*tensors.emplace_back(zeros(argv[i])));
  for (int cycle = 1; cycle <= cycles; ++cycle) {
    {
      Module module(argv[1]);
      if (!module.execute(argv[2], inputs).ok())
        throw std::runtime_error("a call failed; the log above says why");
    }
    if (cycle % 20 == 0) {
      std::printf("{\"cycles\": %d, \"resident\": %ld, \"gpu_free\": %zu, \"in_use\": %llu}\n", cycle,
                  resident_bytes(), gpu_free_bytes(), static_cast<unsigned long long>(in_use()));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: cycles MODEL.pte METHOD CYCLES DTYPE:SIZES...\n";
    return 2;
  }
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "cycles: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
