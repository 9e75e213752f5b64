#include "weights/named_data.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstring>
#include <set>
#include <string_view>

#include "core/failure.h"

namespace etcuda {
namespace {

constexpr std::string_view kProgramKey = "etcuda/program";

constexpr std::string_view kWeightPrefix = "etcuda/w/";

// Reads keys, whose addresses come from an index that ExecuTorch did not verify: in a damaged .ptd they may
// lie anywhere, so the kernel reads them, which fails where this process would end.
class KeyReader {
 public:
  KeyReader() : file_(memfd_create("etcuda_key", MFD_CLOEXEC)) {}
  ~KeyReader() {
    if (file_ >= 0) close(file_);
  }
  KeyReader(const KeyReader&) = delete;
  KeyReader& operator=(const KeyReader&) = delete;

  // The first `length` bytes, or fewer where the key ends before; empty if they cannot be read.
  std::string read(const char* text, size_t length) const {
    std::string copy(length, '\0');
    const auto size = static_cast<ssize_t>(length);
    if (file_ < 0) {
      copy.assign(text, strnlen(text, length));
    } else if (pwrite(file_, text, length, 0) != size || pread(file_, copy.data(), length, 0) != size) {
      return "";
    }
    copy.resize(strnlen(copy.data(), copy.size()));
    return copy;
  }

 private:
  const int file_;
};

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
  const KeyReader reader;
  for (uint32_t i = 0; i < *count; ++i) {
    const auto key = map_->get_key(i);
    // The key's text lies in the loaded program, once, even if every method sees it through a merged map of
    // its own.
    if (key.ok() && reader.read(*key, kProgramKey.size() + 1) == kProgramKey) return *key;
  }
  return nullptr;
}

Digest NamedData::digest() const {
  std::set<std::string> keys;
  const auto count = map_ == nullptr ? ::executorch::runtime::Result<uint32_t>(0) : map_->get_num_keys();
  const KeyReader reader;
  for (uint32_t i = 0; count.ok() && i < *count; ++i) {
    const auto key = map_->get_key(i);
    if (!key.ok()) continue;
    // A key that starts like one of ours is as long as one.
    if (reader.read(*key, kWeightPrefix.size()) == kWeightPrefix)
      keys.insert(reader.read(*key, kWeightPrefix.size() + 2 * sizeof(Digest)));
  }
  std::string all;
  for (const std::string& key : keys) all += key + "\n";
  return sha256(all.data(), all.size());
}

}  // namespace etcuda
