// Blobs, named data and ExecuTorch values, built in memory.
#pragma once

#include <executorch/runtime/backend/interface.h>

#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "core/last_error.h"
#include "core/sha256.h"
#include "generated/delegate_generated.h"

namespace etcuda_test {

using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::NamedDataMap;
using executorch::runtime::Result;
using executorch::runtime::TensorLayout;

using Bytes = std::vector<uint8_t>;

inline Bytes bytes_of(const std::vector<float>& values) {
  const auto* start = reinterpret_cast<const uint8_t*>(values.data());
  return Bytes(start, start + values.size() * sizeof(float));
}

inline Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

inline std::string image_path(const std::string& name) {
  return std::string(ETCUDA_TEST_IMAGES) + "/" + name;
}

inline std::vector<uint8_t> digest_of(const Bytes& bytes) {
  const etcuda::Digest digest = etcuda::sha256(bytes.data(), bytes.size());
  return std::vector<uint8_t>(digest.begin(), digest.end());
}

inline std::string key_of(const Bytes& bytes) {
  return "etcuda/w/" + etcuda::to_hex(etcuda::sha256(bytes.data(), bytes.size()));
}

// Wraps a flatbuffer in the header of docs/blob.md and puts the image behind it.
inline Bytes assemble(const uint8_t* payload, size_t nbytes, const Bytes& image, size_t image_offset) {
  Bytes blob(64, 0);
  const uint8_t magic[8] = {'E', 'T', 'C', 'U', 'D', 'A', 0, 2};
  std::memcpy(blob.data(), magic, 8);
  const uint32_t header = 64;
  const uint64_t size = nbytes;
  std::memcpy(blob.data() + 8, &header, 4);
  std::memcpy(blob.data() + 16, &size, 8);
  const etcuda::Digest digest = etcuda::sha256(payload, nbytes);
  std::memcpy(blob.data() + 24, digest.data(), 32);
  blob.insert(blob.end(), payload, payload + nbytes);
  if (image_offset < blob.size()) throw std::runtime_error("the image overlaps the description");
  blob.resize(image_offset, 0);
  blob.insert(blob.end(), image.begin(), image.end());
  return blob;
}

// Steps of a size's program, and the size or condition that they make.
inline etcuda::schema::SizeStep input_step(int64_t input, uint8_t dim) {
  return etcuda::schema::SizeStep(input, etcuda::schema::SizeOp::input, dim);
}
inline etcuda::schema::SizeStep step(etcuda::schema::SizeOp op, int64_t value = 0) {
  return etcuda::schema::SizeStep(value, op, 0);
}
inline void add_size(std::vector<std::unique_ptr<etcuda::schema::SizeT>>& sizes, const char* text,
                     const std::vector<etcuda::schema::SizeStep>& steps) {
  sizes.push_back(std::make_unique<etcuda::schema::SizeT>());
  sizes.back()->text = text;
  sizes.back()->steps = steps;
}

// A delegate around the fake image: a vector of 1 to `max_length` floats in, one out.
struct BlobRecipe {
  std::string image = "image.so";
  int64_t max_length = 8;
  Bytes weight = bytes_of({1, 2, 3, 4, 5, 6, 7, 8});
  Bytes state;  // empty: zeros
  std::string state_name = "cache";
  uint64_t state_bytes = 32;
  bool state_is_mutable = true;
  etcuda::schema::Device device = etcuda::schema::Device::host;

  // Called with the description before it is packed.
  void (*edit)(etcuda::schema::DelegateT&) = nullptr;

  Bytes build() const {
    namespace schema = etcuda::schema;
    const Bytes code = read_file(image_path(image));
    const size_t offset = 8192;
    schema::DelegateT root;
    root.format_version = 2;
    root.method = "forward";
    for (auto* values : {&root.inputs, &root.outputs}) {
      auto value = std::make_unique<schema::ValueT>();
      value->name = values == &root.inputs ? "x" : "y";
      value->dtype = schema::DType::float32;
      value->dims.push_back(schema::Dim(0, max_length, 0));
      value->dim_order = {0};
      values->push_back(std::move(value));
    }
    add_size(root.sizes, "n", {input_step(0, 0)});
    auto weights = std::make_unique<schema::StorageT>();
    weights->nbytes = weight.size();
    weights->data_key = key_of(weight);
    weights->sha256 = digest_of(weight);
    auto states = std::make_unique<schema::StorageT>();
    states->nbytes = state.empty() ? state_bytes : state.size();
    states->is_mutable = state_is_mutable;
    states->state_name = state_name;
    if (!state.empty()) {
      states->data_key = key_of(state);
      states->sha256 = digest_of(state);
    }
    root.storages.push_back(std::move(weights));
    root.storages.push_back(std::move(states));
    for (uint32_t i = 0; i < 2; ++i) {
      auto constant = std::make_unique<schema::ConstantT>();
      constant->name = i == 0 ? "weight" : "state";
      constant->fqn = i == 0 ? "layer.weight" : "layer.cache";
      constant->storage = i;
      constant->dtype = schema::DType::float32;
      constant->sizes = {static_cast<int64_t>(root.storages[i]->nbytes / 4)};
      constant->strides = {1};
      root.constants.push_back(std::move(constant));
    }
    auto native = std::make_unique<schema::ImageT>();
    native->target = device == schema::Device::host ? "host" : "sm_90";
    native->device = device;
    native->compute_capability = device == schema::Device::host ? 0 : 90;
    native->code_kind = device == schema::Device::host ? schema::CodeKind::native : schema::CodeKind::cubin;
    native->machine = "x86_64";
    native->offset = offset;
    native->nbytes = code.size();
    native->sha256 = digest_of(code);
    root.images.push_back(std::move(native));
    if (edit != nullptr) edit(root);
    flatbuffers::FlatBufferBuilder builder;
    schema::FinishDelegateBuffer(builder, schema::Delegate::Pack(builder, &root));
    return assemble(builder.GetBufferPointer(), builder.GetSize(), code, offset);
  }
};

// A program for a GPU, which the fake driver runs.
inline BlobRecipe cuda_recipe() {
  BlobRecipe recipe;
  recipe.image = "image_cuda.so";
  recipe.device = etcuda::schema::Device::cuda;
  return recipe;
}

// Named data in memory, borrowed by whoever asks, as a program that was loaded from a buffer does.
class MemoryDataMap final : public NamedDataMap {
 public:
  MemoryDataMap() { add("etcuda/program", {1}); }
  explicit MemoryDataMap(const BlobRecipe& recipe) : MemoryDataMap() {
    add(key_of(recipe.weight), recipe.weight);
    if (!recipe.state.empty()) add(key_of(recipe.state), recipe.state);
  }
  void add(const std::string& key, const Bytes& value) { entries_[key] = value; }
  void remove(const std::string& key) { entries_.erase(key); }
  // Makes the data start at an odd address.
  void misalign(const std::string& key) {
    Bytes& value = entries_.at(key);
    value.insert(value.begin(), 0);
    skipped_[key] = 1;
  }

  Result<const TensorLayout> get_tensor_layout(std::string_view) const override {
    return Error::NotImplemented;
  }
  Result<FreeableBuffer> get_data(std::string_view key) const override {
    const auto it = entries_.find(std::string(key));
    if (it == entries_.end()) return Error::NotFound;
    const auto skipped = skipped_.find(it->first);
    const size_t skip = skipped == skipped_.end() ? 0 : skipped->second;
    return FreeableBuffer(it->second.data() + skip, it->second.size() - skip, nullptr);
  }
  Error load_data_into(std::string_view, void*, size_t) const override { return Error::NotImplemented; }
  Result<uint32_t> get_num_keys() const override { return static_cast<uint32_t>(entries_.size()); }
  Result<const char*> get_key(uint32_t index) const override {
    auto it = entries_.begin();
    std::advance(it, index);
    return it->first.c_str();
  }

 private:
  std::map<std::string, Bytes> entries_;
  std::map<std::string, size_t> skipped_;
};

inline executorch::runtime::BackendInterface& backend() {
  auto* found = executorch::runtime::get_backend_class("EtcudaBackend");
  if (found == nullptr) throw std::runtime_error("EtcudaBackend is not registered");
  return *found;
}

// A tensor of ExecuTorch with its own memory.
class TensorValue {
 public:
  using Tensor = executorch::aten::Tensor;
  TensorValue(
      executorch::aten::ScalarType dtype, std::vector<int32_t> sizes, size_t element,
      executorch::aten::TensorShapeDynamism dynamism = executorch::aten::TensorShapeDynamism::DYNAMIC_BOUND)
      : sizes_(std::move(sizes)), order_(sizes_.size()), strides_(sizes_.size()) {
    int32_t step = 1;
    for (size_t i = sizes_.size(); i-- > 0;) {
      order_[i] = static_cast<uint8_t>(i);
      strides_[i] = step;
      step *= std::max(sizes_[i], 1);
    }
    data_.resize(static_cast<size_t>(step) * element, 0xAB);
    impl_ = std::make_unique<executorch::aten::TensorImpl>(dtype, static_cast<ssize_t>(sizes_.size()),
                                                           sizes_.data(), data_.data(), order_.data(),
                                                           strides_.data(), dynamism);
    value_ = EValue(Tensor(impl_.get()));
  }
  static TensorValue floats(const std::vector<float>& values) {
    TensorValue made(executorch::aten::ScalarType::Float, {static_cast<int32_t>(values.size())}, 4);
    if (!values.empty()) std::memcpy(made.data_.data(), values.data(), values.size() * 4);
    return made;
  }
  TensorValue(TensorValue&&) = default;
  EValue* value() { return &value_; }
  void* memory() { return data_.data(); }
  std::vector<float> read() const {
    const auto* start = static_cast<const float*>(impl_->data());
    return std::vector<float>(start, start + impl_->numel());
  }

 private:
  std::vector<int32_t> sizes_;
  std::vector<uint8_t> order_;
  std::vector<int32_t> strides_;
  std::vector<uint8_t> data_;
  std::unique_ptr<executorch::aten::TensorImpl> impl_;
  EValue value_;
};

// One delegate, through the interface that ExecuTorch calls.
class Loaded {
 public:
  Loaded(const Bytes& blob, const NamedDataMap* map) {
    Bytes copy(blob);
    FreeableBuffer processed(copy.data(), copy.size(), nullptr);
    executorch::runtime::BackendInitContext context(nullptr, nullptr, "forward", map);
    auto result = backend().init(context, &processed, {});
    error = result.ok() ? Error::Ok : result.error();
    handle_ = result.ok() ? *result : nullptr;
    // The delegate must not need its bytes any more.
    std::fill(copy.begin(), copy.end(), uint8_t{0xEE});
  }
  ~Loaded() {
    if (handle_ != nullptr) backend().destroy(handle_);
  }
  Loaded(const Loaded&) = delete;

  Error execute(std::vector<EValue*> arguments) {
    if (handle_ == nullptr)
      throw std::runtime_error("the delegate was not loaded: " + etcuda::last_reported_error());
    executorch::runtime::BackendExecutionContext context;
    return backend().execute(context, handle_, {arguments.data(), arguments.size()});
  }
  // Fails the test unless the call succeeds.
  std::vector<float> run(const std::vector<float>& x) {
    TensorValue in = TensorValue::floats(x);
    TensorValue out(executorch::aten::ScalarType::Float, {8}, 4);
    if (execute({in.value(), out.value()}) != Error::Ok)
      throw std::runtime_error(etcuda::last_reported_error());
    return out.read();
  }
  Error error = Error::Ok;

 private:
  executorch::runtime::DelegateHandle* handle_ = nullptr;
};

inline void expect_error(Error got, Error expected, const char* words, const char* file, int line) {
  const std::string message = etcuda::last_reported_error();
  if (got != expected)
    fail_check(file, line, "wrong error " + std::to_string(static_cast<int>(got)) + ": " + message);
  if (message.find(words) == std::string::npos)
    fail_check(file, line, std::string("lacks '") + words + "': " + message);
}

}  // namespace etcuda_test

#define CHECK_ERROR(got, expected, words) \
  etcuda_test::expect_error((got), executorch::runtime::Error::expected, words, __FILE__, __LINE__)
#define CHECK_VALUES(got, ...) CHECK((got) == (std::vector<float> __VA_ARGS__))
