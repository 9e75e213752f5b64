// The command line of llm_runner.
#pragma once

#include <etcuda/llm/sampler.h>

#include <optional>
#include <string>
#include <vector>

namespace etcuda_runner {

// One measurement: pp512 is a prompt of 512 tokens, tg128 are 128 tokens one by one, gs128 the same with
// sampling on the device.
struct BenchTest {
  std::string kind;
  int64_t tokens;
  std::string name() const { return kind + std::to_string(tokens); }
};

struct LlmOptions {
  std::string model_path;
  std::string data_path;
  std::vector<int64_t> ids;
  int64_t max_new_tokens = 0;
  bool ignore_eos = false;
  etcuda::SamplingOptions sampling;
  std::vector<BenchTest> bench;
  bool shorten = false;
  std::vector<int64_t> depths = {0};
  int64_t repetitions = 5;
  std::optional<bool> verify_weights;  // nothing: as the environment says
  bool help = false;
};

const char* llm_usage();

// Throws RunnerError(kUsage).
LlmOptions parse_llm_options(int argc, char** argv);

}  // namespace etcuda_runner
