// Runs several calls of one program in a row, so that its state carries from call to call.
//
// Usage: run_session MODEL.pte SESSION.txt OUTPUT_FOLDER
// A line of SESSION.txt is one call: the method, then one DTYPE:SIZES:FILE per input, for example
//   prefill int64:1x13:tokens.bin int64:13:positions.bin
// Before the method may stand @NAME: the call runs in the session of that name, which has a state of its own.
// FILE holds the raw little-endian elements. A scalar has no sizes: float32::x.bin.
// The first output of call i goes to OUTPUT_FOLDER/i.bin, the others to i_1.bin, i_2.bin and so on.

#include <etcuda/session.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
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

const std::map<std::string, ScalarType> kDtypes = {
    {"bfloat16", ScalarType::BFloat16}, {"bool", ScalarType::Bool},      {"float16", ScalarType::Half},
    {"float32", ScalarType::Float},     {"float64", ScalarType::Double}, {"int16", ScalarType::Short},
    {"int32", ScalarType::Int},         {"int64", ScalarType::Long},     {"int8", ScalarType::Char},
    {"uint8", ScalarType::Byte}};

std::string names() {
  std::string all;
  for (const auto& [name, type] : kDtypes) all += (all.empty() ? "" : ", ") + name;
  return all;
}

std::vector<std::uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TensorPtr parse_input(const std::string& text) {
  std::istringstream fields(text);
  std::string dtype, sizes, path, size;
  if (!std::getline(fields, dtype, ':') || !std::getline(fields, sizes, ':') || !std::getline(fields, path) ||
      kDtypes.count(dtype) == 0)
    throw std::runtime_error("input '" + text + "': expected DTYPE:SIZES:FILE, DTYPE one of " + names());
  std::vector<executorch::aten::SizesType> shape;
  std::size_t elements = 1;
  for (std::istringstream list(sizes); std::getline(list, size, 'x');) {
    shape.push_back(std::stoi(size));
    elements *= shape.back();
  }
  auto data = read_file(path);
  const std::size_t expected = elements * executorch::runtime::elementSize(kDtypes.at(dtype));
  if (data.size() != expected)
    throw std::runtime_error(path + ": expected " + std::to_string(expected) + " bytes, got " +
                             std::to_string(data.size()));
  return make_tensor_ptr(std::move(shape), std::move(data), kDtypes.at(dtype));
}

void write_tensor(const executorch::aten::Tensor& tensor, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()),
             static_cast<std::streamsize>(tensor.nbytes()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

using Sessions = std::map<std::string, etcuda::Session>;

void run_call(Module& module, Sessions& sessions, const std::string& line, const std::string& stem) {
  std::istringstream words(line);
  std::string method, word;
  words >> method;
  std::optional<etcuda::SessionScope> scope;
  if (method[0] == '@') {
    scope.emplace(sessions[method.substr(1)]);
    words >> method;
  }
  std::vector<TensorPtr> tensors;
  std::vector<EValue> inputs;
  while (words >> word) inputs.emplace_back(*tensors.emplace_back(parse_input(word)));
  const auto result = module.execute(method, inputs);
  if (!result.ok())
    throw std::runtime_error("method '" + method + "' failed with error " +
                             std::to_string(static_cast<int>(result.error())) + "; the log above says why");
  for (std::size_t place = 0; place < result->size(); ++place) {
    if (!result->at(place).isTensor())
      throw std::runtime_error("output " + std::to_string(place) + " of '" + method + "' is not a tensor");
    write_tensor(result->at(place).toTensor(), stem + (place ? "_" + std::to_string(place) : "") + ".bin");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: run_session MODEL.pte SESSION.txt OUTPUT_FOLDER\n";
    return 2;
  }
  try {
    Module module(argv[1]);
    std::ifstream session(argv[2]);
    if (!session) throw std::runtime_error(std::string("cannot read ") + argv[2]);
    Sessions sessions;
    int index = 0;
    for (std::string line; std::getline(session, line); ++index)
      run_call(module, sessions, line, std::string(argv[3]) + "/" + std::to_string(index));
  } catch (const std::exception& error) {
    std::cerr << "run_session: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
