#include "tool/options.h"

#include "tool/arguments.h"

namespace etcuda_runner {
namespace {

bool parse_bool(const std::string& name, const std::string& text) {
  if (text != "true" && text != "false")
    throw RunnerError(kUsage, name + ": expected true or false, got '" + text + "'.");
  return text == "true";
}

std::optional<Shape> parse_shape(const std::string& text) {
  if (text.empty()) return std::nullopt;
  Shape shape;
  if (text == "scalar") return shape;
  for (const std::string& size : split(text, 'x')) {
    shape.push_back(static_cast<int32_t>(parse_number("--input_shapes", size, 0, INT32_MAX)));
  }
  return shape;
}

}  // namespace

const char* usage() {
  return R"(usage: executor_runner --model_path FILE.pte [options]

Loads a method of an ExecuTorch program, runs it and writes its outputs.

  --model_path FILE      the program (.pte)
  --data_path FILE       its external data (.ptd), if it has any
  --method NAME          the method to run (default: forward)
  --inputs F1,F2,...     one raw little-endian file per input; without it all inputs are ones
  --input_shapes S1,...  shapes such as 1x5,3,scalar for inputs of dynamic shape; an empty one is the method's own
  --num_executions N     timed executions (default: 1); state carries over from one to the next
  --warmup N             executions before them (default: 0)
  --output_file FILE     where the output goes, raw; with several outputs they go to FILE.0, FILE.1 and so on
  --verify_weights B     true or false: compare the weights with their digests when they are loaded (default: true)
  --cuda_graphs B        true or false: launch repeated calls as CUDA graphs (default: true)
  --print_stats          print load and execution times and memory
  --help                 print this text

Each option may also be written --name=value.

exit codes: 0 success, 1 execution failed, 2 wrong usage, 3 the program, its data or the method could not be loaded,
4 an input could not be read or does not fit, 5 an output could not be written
)";
}

Options parse_options(int argc, char** argv) {
  Options options;
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
    if (name == "--print_stats") {
      options.print_stats = attached.value_or("true") != "false";
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
    } else if (name == "--method") {
      options.method = value();
    } else if (name == "--inputs") {
      const std::string list = value();
      options.inputs = list.empty() ? std::vector<std::string>() : split(list, ',');
    } else if (name == "--input_shapes") {
      for (const std::string& shape : split(value(), ',')) options.input_shapes.push_back(parse_shape(shape));
    } else if (name == "--num_executions") {
      options.num_executions = parse_number(name, value(), 1, 1000000000);
    } else if (name == "--warmup") {
      options.warmup = parse_number(name, value(), 0, 1000000000);
    } else if (name == "--verify_weights") {
      options.verify_weights = parse_bool(name, value());
    } else if (name == "--cuda_graphs") {
      options.cuda_graphs = parse_bool(name, value());
    } else if (name == "--output_file") {
      options.output_file = value();
    } else {
      throw RunnerError(kUsage, "unknown option " + name + ".");
    }
  }
  if (options.model_path.empty()) throw RunnerError(kUsage, "--model_path is missing.");
  return options;
}

}  // namespace etcuda_runner
