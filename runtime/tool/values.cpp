#include "tool/values.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/dtype.h"
#include "core/half.h"

namespace etcuda_runner {
namespace {

using executorch::runtime::Tag;

std::string label(size_t index) {
  return "input " + std::to_string(index);
}

std::vector<uint8_t> read_file(const std::string& path, size_t index) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr)
    throw RunnerError(kInputFailed,
                      label(index) + ": cannot open " + path + ": " + std::strerror(errno) + ".");
  std::vector<uint8_t> bytes;
  uint8_t block[65536];
  for (size_t got; (got = std::fread(block, 1, sizeof(block), file)) > 0;)
    bytes.insert(bytes.end(), block, block + got);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) throw RunnerError(kInputFailed, label(index) + ": cannot read " + path + ".");
  return bytes;
}

std::string describe(const std::vector<int32_t>& sizes) {
  std::string text;
  for (const int32_t size : sizes) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text.empty() ? "scalar" : text;
}

template <typename T>
void fill(std::vector<uint8_t>& bytes, T one) {
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T))
    std::memcpy(bytes.data() + i, &one, sizeof(T));
}

void fill_with_ones(std::vector<uint8_t>& bytes, int32_t dtype) {
  switch (dtype) {
    case etcuda::kFloat32:
      return fill(bytes, 1.0f);
    case etcuda::kFloat64:
      return fill(bytes, 1.0);
    case etcuda::kFloat16:
      return fill(bytes, etcuda::Float16(1.0f));
    case etcuda::kBFloat16:
      return fill(bytes, etcuda::BFloat16(1.0f));
    case etcuda::kInt16:
      return fill(bytes, int16_t{1});
    case etcuda::kInt32:
      return fill(bytes, int32_t{1});
    case etcuda::kInt64:
      return fill(bytes, int64_t{1});
    default:
      return fill(bytes, uint8_t{1});
  }
}

}  // namespace

Inputs::Inputs(const Options& options, const executorch::runtime::MethodMeta& meta) {
  const size_t count = meta.num_inputs();
  if (options.inputs && options.inputs->size() != count) {
    throw RunnerError(kUsage, "--inputs: method " + options.method + " takes " + std::to_string(count) +
                                  " inputs, got " + std::to_string(options.inputs->size()) + " files.");
  }
  if (options.input_shapes.size() > count) {
    throw RunnerError(kUsage, "--input_shapes: method " + options.method + " takes " + std::to_string(count) +
                                  " inputs, got " + std::to_string(options.input_shapes.size()) + " shapes.");
  }
  for (size_t i = 0; i < count; ++i) {
    const auto tag = meta.input_tag(i);
    if (!tag.ok())
      throw RunnerError(kLoadFailed, label(i) + ": the program does not describe it. Export it again.");
    if (*tag == Tag::Tensor) {
      const auto info = meta.input_tensor_meta(i);
      if (!info.ok())
        throw RunnerError(kLoadFailed, label(i) + ": the program does not describe it. Export it again.");
      add_tensor(options, i, *info);
    } else {
      add_number(options, i, *tag);
    }
  }
}

void Inputs::add_tensor(const Options& options, size_t index, const executorch::runtime::TensorInfo& info) {
  auto held = std::make_unique<Held>();
  held->sizes.assign(info.sizes().begin(), info.sizes().end());
  held->dim_order.assign(info.dim_order().begin(), info.dim_order().end());
  const std::vector<int32_t> declared = held->sizes;
  if (index < options.input_shapes.size() && options.input_shapes[index])
    held->sizes = *options.input_shapes[index];
  if (held->sizes.size() != declared.size()) {
    throw RunnerError(kInputFailed, label(index) + ": expected " + std::to_string(declared.size()) +
                                        " dimensions (at most " + describe(declared) +
                                        "), got --input_shapes " + describe(held->sizes) + ".");
  }
  const auto dtype = static_cast<int32_t>(info.scalar_type());
  size_t nbytes = etcuda::dtype_size(dtype);
  for (size_t i = 0; i < held->sizes.size(); ++i) {
    // The program's memory plan has room for no more.
    if (held->sizes[i] > declared[i]) {
      throw RunnerError(kInputFailed, label(index) + ": shape " + describe(held->sizes) +
                                          " is larger than the largest that "
                                          "the method was exported for, " +
                                          describe(declared) + ".");
    }
    nbytes *= static_cast<size_t>(held->sizes[i]);
  }
  if (options.inputs) {
    const std::string& path = (*options.inputs)[index];
    held->bytes = read_file(path, index);
    if (held->bytes.size() != nbytes) {
      throw RunnerError(kInputFailed, label(index) + ": " + path + " has " +
                                          std::to_string(held->bytes.size()) + " bytes, but " +
                                          etcuda::dtype_name(dtype) + " of shape " + describe(held->sizes) +
                                          " has " + std::to_string(nbytes) +
                                          ". Give the shape with --input_shapes if it is dynamic.");
    }
  } else {
    held->bytes.resize(nbytes);
    fill_with_ones(held->bytes, dtype);
  }
  held->strides.resize(held->sizes.size());
  int32_t step = 1;
  for (size_t i = held->dim_order.size(); i-- > 0;) {
    const uint8_t dim = held->dim_order[i];
    held->strides[dim] = step;
    step *= std::max(held->sizes[dim], 1);
  }
  held->tensor = std::make_unique<executorch::aten::TensorImpl>(
      info.scalar_type(), static_cast<ssize_t>(held->sizes.size()), held->sizes.data(), held->bytes.data(),
      held->dim_order.data(), held->strides.data(), executorch::aten::TensorShapeDynamism::DYNAMIC_BOUND);
  values_.emplace_back(executorch::aten::Tensor(held->tensor.get()));
  held_.push_back(std::move(held));
}

void Inputs::add_number(const Options& options, size_t index, Tag tag) {
  const size_t size = tag == Tag::Bool ? 1 : 8;
  if (tag != Tag::Bool && tag != Tag::Int && tag != Tag::Double) {
    throw RunnerError(kInputFailed,
                      label(index) + ": is neither a tensor nor a number, which this program cannot read.");
  }
  std::vector<uint8_t> bytes;
  if (options.inputs) {
    bytes = read_file((*options.inputs)[index], index);
    if (bytes.size() != size) {
      throw RunnerError(kInputFailed, label(index) + ": expected a number of " + std::to_string(size) +
                                          " bytes, got " + std::to_string(bytes.size()) + ".");
    }
  } else {
    bytes.resize(size);
    tag == Tag::Double ? fill(bytes, 1.0)
                       : (tag == Tag::Int ? fill(bytes, int64_t{1}) : fill(bytes, uint8_t{1}));
  }
  if (tag == Tag::Bool) {
    values_.emplace_back(bytes[0] != 0);
  } else if (tag == Tag::Int) {
    int64_t value;
    std::memcpy(&value, bytes.data(), size);
    values_.emplace_back(value);
  } else {
    double value;
    std::memcpy(&value, bytes.data(), size);
    values_.emplace_back(value);
  }
}

namespace {

// The file behind `path` and its links, which need not exist yet, and its mode. Renaming a file over a device
// would replace the device.
std::string real_file(const std::string& path, std::optional<mode_t>* mode) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    const int reason = errno;
    if (reason != ENOENT)
      throw RunnerError(kOutputFailed, "cannot write " + path + ": " + std::strerror(reason) + ".");
    if (lstat(path.c_str(), &status) != 0) return path;  // a name that is free
    throw RunnerError(kOutputFailed,
                      "cannot write " + path + ": it is a link to a file that does not exist.");
  }
  if (!S_ISREG(status.st_mode))
    throw RunnerError(kOutputFailed, "cannot write " + path + ": it is a folder or a device, not a file.");
  *mode = status.st_mode & 07777;
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
  if (real == nullptr)
    throw RunnerError(kOutputFailed, "cannot write " + path + ": " + std::strerror(errno) + ".");
  return real.get();
}

void write_file(const std::string& given, const void* data, size_t nbytes) {
  std::optional<mode_t> mode;
  const std::string path = real_file(given, &mode);
  const std::string temporary = path + ".tmp." + std::to_string(getpid());
  std::FILE* file = std::fopen(temporary.c_str(), "wb");
  bool written = file != nullptr;
  if (written) {
    written = nbytes == 0 || std::fwrite(data, 1, nbytes, file) == nbytes;
    if (written && mode) written = fchmod(fileno(file), *mode) == 0;
    written = std::fclose(file) == 0 && written;
    written = written && std::rename(temporary.c_str(), path.c_str()) == 0;
  }
  if (!written) {
    const std::string reason = std::strerror(errno);
    if (file != nullptr) std::remove(temporary.c_str());
    throw RunnerError(kOutputFailed, "cannot write " + path + ": " + reason + ".");
  }
}

}  // namespace

void write_outputs(const std::string& path, const std::vector<EValue>& outputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string target = outputs.size() == 1 ? path : path + "." + std::to_string(i);
    const EValue& value = outputs[i];
    if (value.isTensor()) {
      write_file(target, value.toTensor().const_data_ptr(), value.toTensor().nbytes());
    } else if (value.isInt()) {
      const int64_t number = value.toInt();
      write_file(target, &number, sizeof(number));
    } else if (value.isDouble()) {
      const double number = value.toDouble();
      write_file(target, &number, sizeof(number));
    } else if (value.isBool()) {
      const auto truth = static_cast<uint8_t>(value.toBool());
      write_file(target, &truth, sizeof(truth));
    } else {
      throw RunnerError(kOutputFailed, "output " + std::to_string(i) + " is neither a tensor nor a number.");
    }
  }
}

}  // namespace etcuda_runner
