// Runs programs with CUDA graphs and without, and compares the bytes of their outputs.
//
// Usage: graphs check STEPS MODEL.pte... -- CALL...
//        graphs time STEPS MODEL.pte -- CALL...
//        graphs threads STEPS MODEL.pte -- CALL...
// A CALL is METHOD and one DTYPE:SIZES:BOUND for each input, with | between them, for example
//   "decode|int64:1x1:256|int64:1:64". Integers count up from a random number so that all are below BOUND.
//
// check: at random one of the programs, one of the calls, and one of three states (two sessions, and that of
// no session), each on two copies of the program. Prints a line of JSON ten times: steps done, resident
// bytes, free bytes of the GPU, bytes in use, bytes that graphs hold, graphs alive, captured, launched,
// failed.
//
// threads: four threads load a program without state, call it and unload it, STEPS times each, while one
// gives cached memory back; their outputs are those of plain calls. Ends with such a line too.
//
// time: the median time of each call in us, with graphs and without, as one line of JSON.
#include <dlfcn.h>
#include <etcuda/session.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "api.h"

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

namespace {

struct Input {
  ScalarType dtype;
  std::vector<executorch::aten::SizesType> sizes;
  int64_t bound = 0;

  size_t numel() const {
    size_t count = 1;
    for (const auto size : sizes) count *= static_cast<size_t>(size);
    return count;
  }
};

struct Call {
  std::string method;
  std::vector<Input> inputs;
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> fields;
  std::istringstream list(text);
  for (std::string field; std::getline(list, field, separator);) fields.push_back(field);
  return fields;
}

ScalarType dtype_of(const std::string& name) {
  if (name == "int64") return ScalarType::Long;
  if (name == "float32") return ScalarType::Float;
  if (name == "float16") return ScalarType::Half;
  if (name == "bfloat16") return ScalarType::BFloat16;
  throw std::runtime_error("dtype " + name);
}

Call parse_call(const std::string& text) {
  const auto words = split(text, '|');
  Call call{words.at(0), {}};
  for (size_t i = 1; i < words.size(); ++i) {
    const auto fields = split(words[i], ':');
    Input input{dtype_of(fields.at(0)), {}, std::stoll(fields.at(2))};
    for (const auto& size : split(fields.at(1), 'x')) input.sizes.push_back(std::stoi(size));
    call.inputs.push_back(input);
  }
  return call;
}

using Random = std::mt19937_64;

std::vector<uint8_t> random_bytes(const Input& input, Random& random) {
  const size_t count = input.numel();
  std::vector<uint8_t> bytes(count * executorch::runtime::elementSize(input.dtype));
  if (input.dtype == ScalarType::Long) {
    const int64_t range = std::max<int64_t>(input.bound - static_cast<int64_t>(count), 1);
    const auto start = static_cast<int64_t>(random() % static_cast<uint64_t>(range));
    for (size_t i = 0; i < count; ++i) {
      const int64_t value = start + static_cast<int64_t>(i);
      std::memcpy(bytes.data() + i * 8, &value, 8);
    }
    return bytes;
  }
  for (size_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(static_cast<int64_t>(random() % 2001) - 1000) / 500;
    uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    if (input.dtype == ScalarType::Float) {
      std::memcpy(bytes.data() + i * 4, &bits, 4);
    } else {
      // The upper half of a float32 is a bfloat16; as a float16 it is some number between 2**-14 and 2.
      uint16_t half = static_cast<uint16_t>(bits >> 16);
      if (input.dtype == ScalarType::Half) half = static_cast<uint16_t>((half & 0x83ff) | 0x3800);
      std::memcpy(bytes.data() + i * 2, &half, 2);
    }
  }
  return bytes;
}

struct Arguments {
  std::vector<TensorPtr> tensors;
  std::vector<EValue> values;

  Arguments(const Call& call, const std::vector<std::vector<uint8_t>>& bytes) {
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      tensors.push_back(
          executorch::extension::make_tensor_ptr(call.inputs[i].sizes, bytes[i], call.inputs[i].dtype));
      values.emplace_back(*tensors.back());
    }
  }
};

std::vector<std::vector<uint8_t>> random_inputs(const Call& call, Random& random) {
  std::vector<std::vector<uint8_t>> bytes;
  for (const Input& input : call.inputs) bytes.push_back(random_bytes(input, random));
  return bytes;
}

std::vector<std::vector<uint8_t>> outputs_of(Module& module, const Call& call, const Arguments& arguments) {
  const auto result = module.execute(call.method, arguments.values);
  if (!result.ok()) throw std::runtime_error("a call failed; the log above says why");
  std::vector<std::vector<uint8_t>> outputs;
  for (const EValue& value : *result) {
    const auto& tensor = value.toTensor();
    const auto* data = static_cast<const uint8_t*>(tensor.const_data_ptr());
    outputs.emplace_back(data, data + tensor.nbytes());
  }
  return outputs;
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

void print_checkpoint(long step) {
  EtcudaMemoryStats stats[16];
  const size_t count = std::min<size_t>(etcuda_memory_stats(stats, 16), 16);
  uint64_t in_use = 0, held = 0;
  for (size_t i = 0; i < count; ++i) {
    in_use += stats[i].allocated;
    held += stats[i].graphs;
  }
  EtcudaGraphStats graphs{};
  etcuda_graph_stats(&graphs);
  std::ostringstream line;
  line << "{\"step\": " << step << ", \"resident\": " << resident_bytes()
       << ", \"gpu_free\": " << gpu_free_bytes() << ", \"in_use\": " << in_use << ", \"held\": " << held
       << ", \"live\": " << graphs.live << ", \"captures\": " << graphs.captures
       << ", \"replays\": " << graphs.replays << ", \"refusals\": " << graphs.refusals << "}";
  std::puts(line.str().c_str());
}

struct Copies {
  explicit Copies(const std::string& path) : graphed(path), plain(path) {}
  Module graphed, plain;
  etcuda::Session graphed_sessions[2], plain_sessions[2];
};

void check(long steps, const std::vector<std::string>& paths, const std::vector<Call>& calls) {
  std::vector<std::unique_ptr<Copies>> programs;
  for (const auto& path : paths) programs.push_back(std::make_unique<Copies>(path));
  Random random(7);
  for (long step = 1; step <= steps; ++step) {
    Copies& program = *programs[random() % programs.size()];
    const Call& call = calls[random() % calls.size()];
    const size_t state = random() % 3;
    const Arguments arguments(call, random_inputs(call, random));
    std::vector<std::vector<uint8_t>> results[2];
    for (const bool graphed : {true, false}) {
      etcuda_set_cuda_graphs(graphed ? 1 : 0);
      std::optional<etcuda::SessionScope> scope;
      if (state < 2) scope.emplace((graphed ? program.graphed_sessions : program.plain_sessions)[state]);
      results[graphed ? 1 : 0] = outputs_of(graphed ? program.graphed : program.plain, call, arguments);
    }
    if (results[0] != results[1]) {
      throw std::runtime_error("step " + std::to_string(step) + ": " + call.method +
                               " differs between a graph and a plain call");
    }
    if (step % (steps / 10) == 0) print_checkpoint(step);
  }
}

void run_threads(long steps, const std::string& path, const std::vector<Call>& calls) {
  Random random(7);
  std::vector<Arguments> arguments;
  std::vector<std::vector<std::vector<uint8_t>>> expected;
  {
    etcuda_set_cuda_graphs(0);
    Module module(path);
    for (const Call& call : calls) {
      arguments.emplace_back(call, random_inputs(call, random));
      expected.push_back(outputs_of(module, call, arguments.back()));
    }
    etcuda_set_cuda_graphs(1);
  }
  std::atomic<bool> is_done{false};
  std::vector<std::string> failures(5);
  const auto work = [&](size_t index) {
    try {
      for (long step = 0; step < steps; ++step) {
        Module module(path);
        for (int round = 0; round < 6; ++round) {
          for (size_t i = 0; i < calls.size(); ++i) {
            if (outputs_of(module, calls[i], arguments[i]) != expected[i])
              throw std::runtime_error("call " + std::to_string(i) + " differs from a plain call");
          }
        }
      }
    } catch (const std::exception& error) {
      failures[index] = error.what();
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i) threads.emplace_back(work, i);
  std::thread emptier([&] {
    while (!is_done) {
      if (etcuda_empty_cache() != 0) failures[4] = "empty_cache failed; the log above says why";
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  for (std::thread& thread : threads) thread.join();
  is_done = true;
  emptier.join();
  for (const std::string& failure : failures) {
    if (!failure.empty()) throw std::runtime_error(failure);
  }
  print_checkpoint(steps);
}

double median_us(Module& module, const Call& call, const Arguments& arguments, long steps) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (long step = 0; step < steps + 10; ++step) {
    const auto start = Clock::now();
    if (!module.execute(call.method, arguments.values).ok()) throw std::runtime_error("a call failed");
    if (step >= 10) times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

void time(long steps, const std::string& path, const std::vector<Call>& calls) {
  Module module(path);
  Random random(7);
  for (const Call& call : calls) {
    const Arguments arguments(call, random_inputs(call, random));
    double us[2];
    for (const bool graphed : {false, true}) {
      etcuda_set_cuda_graphs(graphed ? 1 : 0);
      us[graphed ? 1 : 0] = median_us(module, call, arguments, steps);
    }
    std::printf("{\"method\": \"%s\", \"plain_us\": %.1f, \"graph_us\": %.1f}\n", call.method.c_str(), us[0],
                us[1]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> paths;
  std::vector<Call> calls;
  try {
    const std::string mode = argc > 1 ? argv[1] : "";
    int i = 3;
    for (; i < argc && std::string(argv[i]) != "--"; ++i) paths.push_back(argv[i]);
    for (++i; i < argc; ++i) calls.push_back(parse_call(argv[i]));
    if (paths.empty() || calls.empty() || (mode != "check" && mode != "time" && mode != "threads")) {
      std::cerr << "usage: graphs check|threads|time STEPS MODEL.pte... -- CALL...\n";
      return 2;
    }
    if (mode == "check") {
      check(std::stol(argv[2]), paths, calls);
    } else if (mode == "threads") {
      run_threads(std::stol(argv[2]), paths[0], calls);
    } else {
      time(std::stol(argv[2]), paths[0], calls);
    }
  } catch (const std::exception& error) {
    std::cerr << "graphs: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
