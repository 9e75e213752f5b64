// Times single calls of one method by the host's clock: inputs in host memory to output in host memory.
//
// Usage: bench_calls MODEL.pte METHOD WARMUP CALLS OUTPUT.bin DTYPE:SIZES:FILE...
// Prints one line of JSON: {"load_ms": n, "host_ns": [...]}. The first output goes to OUTPUT.bin.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using executorch::aten::ScalarType;
using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

namespace {

const std::map<std::string, ScalarType> kDtypes = {{"int64", ScalarType::Long},
                                                   {"float32", ScalarType::Float},
                                                   {"float16", ScalarType::Half},
                                                   {"bfloat16", ScalarType::BFloat16}};

TensorPtr read_input(const std::string& text) {
  std::istringstream fields(text);
  std::string dtype, sizes, path, size;
  std::getline(fields, dtype, ':');
  std::getline(fields, sizes, ':');
  std::getline(fields, path);
  std::vector<executorch::aten::SizesType> shape;
  for (std::istringstream list(sizes); std::getline(list, size, 'x');) shape.push_back(std::stoi(size));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<std::uint8_t> data{std::istreambuf_iterator<char>(file), {}};
  return make_tensor_ptr(std::move(shape), std::move(data), kDtypes.at(dtype));
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void write_output(const char* path, const executorch::aten::Tensor& tensor) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()),
             static_cast<std::streamsize>(tensor.nbytes()));
  if (!file) throw std::runtime_error(std::string("cannot write ") + path);
}

int run(int argc, char** argv) {
  const std::string method = argv[2];
  const int warmup = std::stoi(argv[3]), calls = std::stoi(argv[4]);
  std::vector<TensorPtr> tensors;
  std::vector<EValue> inputs;
  for (int i = 6; i < argc; ++i) inputs.emplace_back(*tensors.emplace_back(read_input(argv[i])));
  const int64_t start = now_ns();
  Module module(argv[1]);
  if (module.load_method(method) != executorch::runtime::Error::Ok)
    throw std::runtime_error("loading failed");
  const double load_ms = static_cast<double>(now_ns() - start) / 1e6;
  std::vector<int64_t> host_ns;
  for (int i = -warmup; i < calls; ++i) {
    const int64_t before = now_ns();
    const auto result = module.execute(method, inputs);
    const int64_t after = now_ns();
    if (!result.ok()) throw std::runtime_error("a call failed; the log above says why");
    if (i >= 0) host_ns.push_back(after - before);
    if (i + 1 == calls) write_output(argv[5], result->at(0).toTensor());
  }
  std::printf("{\"load_ms\": %.3f, \"host_ns\": [", load_ms);
  for (size_t i = 0; i < host_ns.size(); ++i)
    std::printf("%s%lld", i ? ", " : "", static_cast<long long>(host_ns[i]));
  std::printf("]}\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::cerr << "usage: bench_calls MODEL.pte METHOD WARMUP CALLS OUTPUT.bin DTYPE:SIZES:FILE...\n";
    return 2;
  }
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "bench_calls: " << error.what() << '\n';
    return 1;
  }
}
