// Loads and runs mutated programs, each as executor_runner does, in children that may crash.
//
// usage: fuzz_programs PROGRAM.pte[,DATA.ptd] ... < cases > outcomes
//
// A case, little endian: int32 program, int64 length of the .pte or -1, int64 length of the .ptd or -1, int32
// number of edits; an edit: int32 file (0 or 1), int64 offset, int32 length, bytes. An outcome is a line:
// "same", "changed", "load MESSAGE", "execute MESSAGE", "crash SIGNAL OWNER FRAMES", "ended STATUS" or
// "hung".
#include <executorch/extension/module/module.h>
#include <executorch/runtime/platform/log.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "api.h"
#include "crash_report.h"

namespace {

using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Program;
using Bytes = std::vector<char>;

constexpr int kSeconds = 20;
constexpr size_t kBatch = 64;
constexpr rlim_t kAddressSpace = rlim_t{8} << 30;

struct Input {
  Bytes bytes;
  std::vector<int32_t> sizes;
  std::vector<uint8_t> order;
  std::vector<int32_t> strides;
  std::unique_ptr<executorch::aten::TensorImpl> tensor;
};

struct Method {
  std::string name;
  std::vector<std::unique_ptr<Input>> inputs;
};

struct Base {
  Bytes files[2];
  std::vector<Method> methods;
  Bytes expected;
};

struct Edit {
  int32_t file;
  int64_t offset;
  Bytes bytes;
};

struct Case {
  int32_t program;
  int64_t lengths[2];
  std::vector<Edit> edits;
};

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// Small numbers, all different from their neighbours; indices are small too.
template <typename T>
void fill(Bytes& bytes) {
  for (size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
    const T value = std::is_floating_point_v<T> ? static_cast<T>(static_cast<double>(i % 7) * 0.25 - 0.5)
                                                : static_cast<T>(i % 5);
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
}

std::unique_ptr<Input> make_input(const executorch::runtime::TensorInfo& info) {
  auto input = std::make_unique<Input>();
  input->bytes.resize(info.nbytes());
  const auto type = info.scalar_type();
  if (type == executorch::aten::ScalarType::Float) fill<float>(input->bytes);
  if (type == executorch::aten::ScalarType::Double) fill<double>(input->bytes);
  if (type == executorch::aten::ScalarType::Long) fill<int64_t>(input->bytes);
  if (type == executorch::aten::ScalarType::Int) fill<int32_t>(input->bytes);
  input->sizes.assign(info.sizes().begin(), info.sizes().end());
  input->order.assign(info.dim_order().begin(), info.dim_order().end());
  input->strides.resize(input->sizes.size());
  int32_t step = 1;
  for (size_t i = input->sizes.size(); i-- > 0;) {
    const uint8_t dim = input->order[i];
    input->strides[dim] = step;
    step *= std::max(input->sizes[dim], 1);
  }
  input->tensor = std::make_unique<executorch::aten::TensorImpl>(
      type, static_cast<ssize_t>(input->sizes.size()), input->sizes.data(), input->bytes.data(),
      input->order.data(), input->strides.data());
  return input;
}

std::string words(const char* what, Error error) {
  char text[512] = {};
  etcuda_last_error(text, sizeof(text));
  std::string line =
      std::string(what) + " " + (text[0] != '\0' ? text : executorch::runtime::to_string(error));
  for (char& c : line) {
    if (c == '\n' || c == '\r' || c == '\0') c = ' ';
  }
  return line;
}

// Runs all methods twice, so that state shows; appends what they return. An empty text: all went well.
std::string run(const std::string& program, const std::string& data, std::vector<Method>& methods,
                bool describes, Bytes& outputs) {
  std::vector<std::string> files;
  if (!data.empty()) files.push_back(data);
  Module module(program, files, Module::LoadMode::Mmap);
  Error error = module.load(Program::Verification::InternalConsistency);
  if (error != Error::Ok) return words("load", error);
  if (describes) {
    const auto names = module.method_names();
    if (!names.ok()) return words("load", names.error());
    for (const std::string& name : std::vector<std::string>(names->begin(), names->end()))
      methods.push_back({name, {}});
    std::sort(methods.begin(), methods.end(),
              [](const Method& a, const Method& b) { return a.name < b.name; });
  }
  for (Method& method : methods) {
    error = module.load_method(method.name);
    if (error != Error::Ok) return words("load", error);
    const auto meta = module.method_meta(method.name);
    if (!meta.ok()) return words("load", meta.error());
    for (size_t i = 0; describes && i < meta->num_inputs(); ++i) {
      const auto info = meta->input_tensor_meta(i);
      if (!info.ok()) return words("load", info.error());
      method.inputs.push_back(make_input(*info));
    }
  }
  for (int round = 0; round < 2; ++round) {
    for (const Method& method : methods) {
      std::vector<EValue> values;
      for (const auto& input : method.inputs)
        values.emplace_back(executorch::aten::Tensor(input->tensor.get()));
      const auto results = module.execute(method.name, values);
      if (!results.ok()) return words("execute", results.error());
      for (const EValue& value : *results) {
        if (!value.isTensor()) continue;
        const auto& tensor = value.toTensor();
        const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
        for (const int32_t size : tensor.sizes()) {
          outputs.insert(outputs.end(), reinterpret_cast<const char*>(&size),
                         reinterpret_cast<const char*>(&size + 1));
        }
        if (bytes != nullptr) outputs.insert(outputs.end(), bytes, bytes + tensor.nbytes());
      }
    }
  }
  return "";
}

std::string outcome(Base& base, const Case& mutant, const std::string& folder) {
  std::string paths[2] = {folder + "/m.pte", ""};
  if (!base.files[1].empty()) paths[1] = folder + "/m.ptd";
  for (int file = 0; file < 2; ++file) {
    if (paths[file].empty()) continue;
    Bytes bytes = base.files[file];
    for (const Edit& edit : mutant.edits) {
      const auto size = static_cast<int64_t>(bytes.size());
      if (edit.file != file || edit.offset < 0 || edit.offset >= size) continue;
      const auto n = std::min(static_cast<int64_t>(edit.bytes.size()), size - edit.offset);
      std::memcpy(bytes.data() + edit.offset, edit.bytes.data(), static_cast<size_t>(n));
    }
    if (mutant.lengths[file] >= 0) bytes.resize(static_cast<size_t>(mutant.lengths[file]));
    write_file(paths[file], bytes);
  }
  Bytes outputs;
  try {
    const std::string failure = run(paths[0], paths[1], base.methods, false, outputs);
    if (!failure.empty()) return failure;
  } catch (const std::bad_alloc&) {
    return "load out of memory in the runner";
  } catch (const std::exception& error) {
    return std::string("load ") + error.what() + " in the runner";
  }
  return outputs == base.expected ? "same" : "changed";
}

template <typename T>
bool get(T& value) {
  return std::fread(&value, sizeof(T), 1, stdin) == 1;
}

bool read_case(Case& mutant) {
  int32_t count = 0;
  if (!get(mutant.program) || !get(mutant.lengths[0]) || !get(mutant.lengths[1]) || !get(count)) return false;
  for (int32_t i = 0; i < count; ++i) {
    Edit edit{};
    int32_t length = 0;
    if (!get(edit.file) || !get(edit.offset) || !get(length)) return false;
    edit.bytes.resize(static_cast<size_t>(length));
    if (length > 0 && std::fread(edit.bytes.data(), edit.bytes.size(), 1, stdin) != 1) return false;
    mutant.edits.push_back(std::move(edit));
  }
  return true;
}

// One child for cases from `first` on; returns the outcomes it lived to tell, and that of its end.
std::vector<std::string> in_child(std::vector<Base>& bases, const std::vector<Case>& cases, size_t first,
                                  const std::string& folder) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe");
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ends[0]);
    const rlimit room{kAddressSpace, kAddressSpace}, none{0, 0};
    setrlimit(RLIMIT_AS, &room);
    setrlimit(RLIMIT_CORE, &none);
    etcuda_fuzz_report_crashes_to(ends[1]);
    for (size_t i = first; i < cases.size(); ++i) {
      const std::string line = outcome(bases[static_cast<size_t>(cases[i].program)], cases[i], folder) + "\n";
      if (write(ends[1], line.data(), line.size()) < 0) _exit(1);
    }
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  bool hung = false;
  char buffer[4096];
  for (;;) {
    pollfd ready{ends[0], POLLIN, 0};
    if (poll(&ready, 1, kSeconds * 1000) == 0) {
      kill(child, SIGKILL);
      hung = true;
      break;
    }
    const ssize_t n = read(ends[0], buffer, sizeof(buffer));
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  std::vector<std::string> lines;
  for (size_t at = 0, next; (next = text.find('\n', at)) != std::string::npos; at = next + 1) {
    lines.push_back(text.substr(at, next - at));
  }
  const bool told = !lines.empty() && lines.back().rfind("crash ", 0) == 0;
  if (lines.size() < cases.size() - first && !told) {
    lines.push_back(hung ? "hung"
                         : "ended " +
                               std::to_string(WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status)));
  }
  return lines;
}

}  // namespace

int main(int argc, char** argv) {
  char folder[] = "/dev/shm/fuzz-XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  std::vector<Base> bases;
  for (int i = 1; i < argc; ++i) {
    const std::string both = argv[i];
    const size_t comma = both.find(',');
    const std::string program = both.substr(0, comma);
    const std::string data = comma == std::string::npos ? "" : both.substr(comma + 1);
    Base base;
    base.files[0] = read_file(program);
    if (!data.empty()) base.files[1] = read_file(data);
    const std::string failure = run(program, data, base.methods, true, base.expected);
    if (!failure.empty() || base.expected.empty()) {
      std::fprintf(stderr, "%s, unchanged: %s\n", program.c_str(), failure.c_str());
      return 1;
    }
    bases.push_back(std::move(base));
  }
  for (bool more = true; more;) {
    std::vector<Case> cases;
    while (cases.size() < kBatch) {
      Case mutant{};
      if (!(more = read_case(mutant))) break;
      cases.push_back(std::move(mutant));
    }
    for (size_t done = 0; done < cases.size();) {
      const auto lines = in_child(bases, cases, done, folder);
      for (const std::string& line : lines) std::printf("%s\n", line.c_str());
      done += lines.size();
    }
    std::fflush(stdout);
  }
  for (const char* name : {"/m.pte", "/m.ptd"}) unlink((std::string(folder) + name).c_str());
  rmdir(folder);
  return 0;
}
