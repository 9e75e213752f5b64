// The command line of executor_runner.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace etcuda_runner {

// What the process returns.
enum ExitCode : int {
  kOk = 0,
  kExecutionFailed = 1,
  kUsage = 2,
  kLoadFailed = 3,
  kInputFailed = 4,
  kOutputFailed = 5,
};

class RunnerError : public std::runtime_error {
 public:
  RunnerError(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

using Shape = std::vector<int32_t>;

struct Options {
  std::string model_path;
  std::string data_path;
  std::string method = "forward";
  std::optional<std::vector<std::string>> inputs;
  std::vector<std::optional<Shape>> input_shapes;  // nothing: as the method declares
  int64_t num_executions = 1;
  int64_t warmup = 0;
  std::string output_file;
  bool print_stats = false;
  std::optional<bool> verify_weights;  // nothing: as the environment says
  std::optional<bool> cuda_graphs;     // nothing: as the environment says
  bool help = false;
};

const char* usage();

// Throws RunnerError(kUsage).
Options parse_options(int argc, char** argv);

}  // namespace etcuda_runner
