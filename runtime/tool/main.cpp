// executor_runner: runs a method of an ExecuTorch program from the command line.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "api.h"
#include "core/text.h"
#include "tool/values.h"

namespace etcuda_runner {
namespace {

using executorch::extension::Module;
using executorch::runtime::Error;
using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// The delegate's own words, or ExecuTorch's, if there are any; else ExecuTorch's code.
std::string reason(Error error) {
  char text[2048] = {};
  etcuda_last_error(text, sizeof(text));
  if (text[0] != '\0') return text;
  return std::string("ExecuTorch reports ") + executorch::runtime::to_string(error) + ".";
}

void print_stats(double load_us, std::vector<double> runs) {
  std::sort(runs.begin(), runs.end());
  const size_t n = runs.size();
  const double median = n % 2 == 1 ? runs[n / 2] : (runs[n / 2 - 1] + runs[n / 2]) / 2;
  std::printf("load_ms %.3f\n", load_us / 1000);
  std::printf("executions %zu\nmin_us %.1f\nmedian_us %.1f\nmax_us %.1f\n", n, runs.front(), median,
              runs.back());
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("peak_resident_kib %ld\n", usage.ru_maxrss);
  EtcudaMemoryStats stats[16];
  const size_t count = std::min<size_t>(etcuda_memory_stats(stats, 16), 16);
  for (size_t i = 0; i < count; ++i) {
    std::printf("%s%d_allocated_bytes %lu\n%s%d_peak_bytes %lu\n", stats[i].device_type == 0 ? "cpu" : "cuda",
                stats[i].device_index, static_cast<unsigned long>(stats[i].allocated),
                stats[i].device_type == 0 ? "cpu" : "cuda", stats[i].device_index,
                static_cast<unsigned long>(stats[i].peak));
    if (stats[i].device_type != 0) {
      std::printf("cuda%d_graph_bytes %lu\n", stats[i].device_index,
                  static_cast<unsigned long>(stats[i].graphs));
    }
  }
  EtcudaGraphStats graphs{};
  etcuda_graph_stats(&graphs);
  std::printf("cuda_graphs %lu\ncuda_graph_launches %lu\n", static_cast<unsigned long>(graphs.captures),
              static_cast<unsigned long>(graphs.replays));
}

std::vector<EValue> execute(Module& module, const Options& options, const Inputs& inputs) {
  auto result = module.execute(options.method, inputs.values());
  if (!result.ok()) throw RunnerError(kExecutionFailed, "execution failed: " + reason(result.error()));
  return std::move(*result);
}

void require_file(const std::string& path, const char* option) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw RunnerError(kLoadFailed, std::string(option) + ": cannot open " + path + ".");
  std::fclose(file);
}

void run(const Options& options) {
  require_file(options.model_path, "--model_path");
  if (!options.data_path.empty()) require_file(options.data_path, "--data_path");
  if (options.verify_weights) etcuda_set_verify_weights(*options.verify_weights ? 1 : 0);
  if (options.cuda_graphs) etcuda_set_cuda_graphs(*options.cuda_graphs ? 1 : 0);
  const auto start = Clock::now();
  std::vector<std::string> data;
  if (!options.data_path.empty()) data.push_back(options.data_path);
  Module module(options.model_path, data, Module::LoadMode::Mmap);
  // The verification that the Python runtime does too: a damaged file ends in an error.
  Error error = module.load(executorch::runtime::Program::Verification::InternalConsistency);
  if (error != Error::Ok) {
    throw RunnerError(kLoadFailed, "cannot load " + options.model_path + ": " + reason(error));
  }
  const auto names = module.method_names();
  if (names.ok() && names->count(options.method) == 0) {
    std::string known;
    for (const std::string& name : *names) known += (known.empty() ? "" : ", ") + name;
    throw RunnerError(kLoadFailed, "the program has no method " + options.method + "; it has " + known + ".");
  }
  error = module.load_method(options.method);
  if (error != Error::Ok) {
    throw RunnerError(kLoadFailed, "cannot load method " + options.method + ": " + reason(error));
  }
  const double load_us = microseconds_since(start);
  const auto meta = module.method_meta(options.method);
  if (!meta.ok())
    throw RunnerError(kLoadFailed, "cannot describe method " + options.method + ": " + reason(meta.error()));
  const Inputs inputs(options, *meta);
  for (int64_t i = 0; i < options.warmup; ++i) execute(module, options, inputs);
  std::vector<double> times;
  std::vector<EValue> outputs;
  for (int64_t i = 0; i < options.num_executions; ++i) {
    const auto begin = Clock::now();
    outputs = execute(module, options, inputs);
    times.push_back(microseconds_since(begin));
  }
  if (!options.output_file.empty()) write_outputs(options.output_file, outputs);
  if (options.print_stats) print_stats(load_us, std::move(times));
}

int guarded_main(int argc, char** argv) {
  try {
    const Options options = parse_options(argc, argv);
    if (options.help) {
      std::fputs(usage(), stdout);
      return kOk;
    }
    run(options);
    return kOk;
  } catch (const RunnerError& error) {
    std::fprintf(stderr, "executor_runner: %s\n", etcuda::printable(error.what()).c_str());
    if (error.code() == kUsage) std::fputs("Try executor_runner --help.\n", stderr);
    return error.code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "executor_runner: %s\n", etcuda::printable(error.what()).c_str());
    return kExecutionFailed;
  }
}

}  // namespace
}  // namespace etcuda_runner

int main(int argc, char** argv) {
  return etcuda_runner::guarded_main(argc, argv);
}
