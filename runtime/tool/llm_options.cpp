#include "tool/llm_options.h"

#include "tool/arguments.h"

namespace etcuda_runner {
namespace {

std::vector<int64_t> parse_list(const std::string& name, const std::string& text) {
  std::vector<int64_t> all;
  for (const std::string& each : split(text, ',')) all.push_back(parse_number(name, each, 0, INT64_MAX));
  return all;
}

std::vector<BenchTest> parse_bench(const std::string& text) {
  std::vector<BenchTest> tests;
  for (const std::string& each : split(text, ',')) {
    const std::string kind = each.substr(0, 2);
    if (kind != "pp" && kind != "tg" && kind != "gs")
      throw RunnerError(kUsage, "--bench: expected tests such as pp512,tg128, got '" + each + "'.");
    tests.push_back({kind, parse_number("--bench", each.substr(2), 1, 1 << 30)});
  }
  return tests;
}

}  // namespace

const char* llm_usage() {
  return R"(usage: llm_runner --model_path m.pte --data_path m.ptd --ids 1,2,3 [options]

Continues a prompt of token ids with a program that etcuda export wrote; prints the ids of the answer, and figures as
one line of JSON on standard error.

  --model_path FILE        the program (.pte)
  --data_path FILE         its weights (.ptd), if they are not in it
  --ids I1,I2,...          the prompt
  --max_new_tokens N       most tokens of the answer (default 0: as many as the cache holds)
  --ignore_eos             go on behind a token that ends the answer
  --temperature X          0, the default, takes the likeliest token
  --top_k N --top_p X --min_p X --repetition_penalty X --seed N
                           as in etcuda generate, with the same draws
  --bench T1,T2,...        measure instead: pp512 is a prompt of 512 tokens, tg128 are 128 tokens one by one,
                           gs128 the same with sampling on the device (as --temperature and so on say); a line of
                           JSON for each test and depth, with the nanoseconds of each repetition
  --shorten                shorten tests to what the cache holds behind the greatest depth
  --depth D1,D2,...        tokens in the cache before a test (default 0)
  --repetitions N          of a test, after one to three that are not counted (default 5)
  --verify_weights B       true or false: compare the weights with their digests when they are loaded (default true)
  --help                   print this text

Each option may also be written --name=value.

exit codes: 0 success, 1 it failed, 2 wrong usage, 3 the program could not be loaded, 4 the prompt does not fit
)";
}

LlmOptions parse_llm_options(int argc, char** argv) {
  LlmOptions options;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    std::optional<std::string> attached;
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      attached = name.substr(equals + 1);
      name.resize(equals);
    }
    if (name == "--help" || name == "-h") {
      options.help = true;
      return options;
    }
    if ((name == "--ignore_eos" || name == "--shorten") && !attached) {
      (name == "--shorten" ? options.shorten : options.ignore_eos) = true;
      continue;
    }
    const auto value = [&]() -> std::string {
      if (attached) return *attached;
      if (i + 1 >= argc) throw RunnerError(kUsage, name + ": expected a value after it.");
      return argv[++i];
    };
    if (name == "--model_path") {
      options.model_path = value();
    } else if (name == "--data_path") {
      options.data_path = value();
    } else if (name == "--ids") {
      options.ids = parse_list(name, value());
    } else if (name == "--max_new_tokens") {
      options.max_new_tokens = parse_number(name, value(), 0, INT64_MAX);
    } else if (name == "--temperature") {
      options.sampling.temperature = parse_real(name, value());
    } else if (name == "--top_k") {
      options.sampling.top_k = parse_number(name, value(), 0, INT64_MAX);
    } else if (name == "--top_p") {
      options.sampling.top_p = parse_real(name, value());
    } else if (name == "--min_p") {
      options.sampling.min_p = parse_real(name, value());
    } else if (name == "--repetition_penalty") {
      options.sampling.repetition_penalty = parse_real(name, value());
    } else if (name == "--seed") {
      options.sampling.seed = static_cast<uint64_t>(parse_number(name, value(), 0, INT64_MAX));
    } else if (name == "--bench") {
      options.bench = parse_bench(value());
    } else if (name == "--depth") {
      options.depths = parse_list(name, value());
    } else if (name == "--repetitions") {
      options.repetitions = parse_number(name, value(), 1, 1000000);
    } else if (name == "--verify_weights") {
      const std::string text = value();
      if (text != "true" && text != "false")
        throw RunnerError(kUsage, name + ": expected true or false, got '" + text + "'.");
      options.verify_weights = text == "true";
    } else {
      throw RunnerError(kUsage, "unknown option " + name + ".");
    }
  }
  if (options.model_path.empty()) throw RunnerError(kUsage, "--model_path is missing.");
  if (options.ids.empty() == options.bench.empty())
    throw RunnerError(kUsage, "expected one of --ids and --bench, got " +
                                  std::string(options.ids.empty() ? "neither." : "both."));
  try {
    options.sampling.check();
  } catch (const std::invalid_argument& error) {
    throw RunnerError(kUsage, std::string("--") + error.what());
  }
  return options;
}

}  // namespace etcuda_runner
