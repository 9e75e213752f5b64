#include "weights/named_data.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstring>

#include "core/failure.h"

namespace etcuda {
namespace {

constexpr char kProgramKey[] = "etcuda/program";

// Whether the text is the program's key. The address comes from an index that ExecuTorch did not verify: in a
// damaged .ptd it may lie anywhere, so the kernel reads it, which fails where this process would end.
bool is_program_key(const char* text) {
  char copy[sizeof(kProgramKey)] = {};
  const int file = memfd_create("etcuda_key", MFD_CLOEXEC);
  if (file < 0) return std::strcmp(text, kProgramKey) == 0;
  const bool is_read = pwrite(file, text, sizeof(copy), 0) == static_cast<ssize_t>(sizeof(copy)) &&
                       pread(file, copy, sizeof(copy), 0) == static_cast<ssize_t>(sizeof(copy));
  close(file);
  return is_read && std::memcmp(copy, kProgramKey, sizeof(copy)) == 0;
}

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
    if (key.ok() && is_program_key(*key)) return *key;
  }
  return nullptr;
}

}  // namespace etcuda
