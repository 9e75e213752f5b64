#include "weights/named_data.h"

#include <cinttypes>
#include <cstring>

#include "core/failure.h"

namespace etcuda {
namespace {

constexpr const char* kProgramKey = "etcuda/program";

}  // namespace

FreeableBuffer NamedData::load(const StorageSpec& storage, const std::string& fqn) const {
  const char* name = fqn.empty() ? "a weight" : fqn.c_str();
  if (map_ == nullptr) {
    fail(ErrorCode::NotFound,
         "the weights of %s (key %s) are not in the program. They are in a .ptd file: pass it when loading "
         "the "
         "program (data_path in Python, --data_path of executor_runner).",
         name, storage.data_key.c_str());
  }
  auto data = map_->get_data(storage.data_key);
  if (!data.ok()) {
    fail(data.error() == ErrorCode::NotFound ? ErrorCode::NotFound : ErrorCode::InvalidExternalData,
         "the weights of %s (key %s) could not be read: error 0x%x. Pass the .ptd file that was exported "
         "together "
         "with this program when loading it (data_path in Python, --data_path of executor_runner).",
         name, storage.data_key.c_str(), static_cast<unsigned>(data.error()));
  }
  if (data->size() != storage.nbytes) {
    fail(ErrorCode::InvalidExternalData,
         "the weights of %s (key %s) should have %" PRIu64
         " bytes, got %zu. The .ptd file is damaged: copy or "
         "export it again.",
         name, storage.data_key.c_str(), storage.nbytes, data->size());
  }
  return std::move(*data);
}

const void* NamedData::program() const {
  if (map_ == nullptr) return nullptr;
  const auto count = map_->get_num_keys();
  if (!count.ok()) return nullptr;
  for (uint32_t i = 0; i < *count; ++i) {
    const auto key = map_->get_key(i);
    // The key's text lies in the loaded program, once, even if every method sees it through a merged map of
    // its own.
    if (key.ok() && std::strcmp(*key, kProgramKey) == 0) return *key;
  }
  return nullptr;
}

}  // namespace etcuda
