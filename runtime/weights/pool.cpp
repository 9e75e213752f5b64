#include "weights/pool.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <tuple>

#include "core/failure.h"
#include "cuda/copy.h"
#include "cuda/stream.h"
#include "weights/upload.h"
#include "weights/verify.h"

namespace etcuda {
namespace {

// Bytes of the program, used where they lie.
class BufferStorage final : public Storage {
 public:
  explicit BufferStorage(FreeableBuffer buffer)
      : Storage(const_cast<void*>(buffer.data()), buffer.size(), kHost, 0), buffer_(std::move(buffer)) {}

 private:
  FreeableBuffer buffer_;
};

// Bytes in memory at most, and a weight more, where threads load weights for a GPU: several large ones at a
// time.
constexpr size_t kRoomForGpu = size_t{1} << 30;

// Content, device, and the program if its own bytes are used: those may go away with it.
using ConstantKey = std::tuple<Digest, uint64_t, int, int, const void*>;
using StateKey = std::tuple<const void*, std::string, int, int>;

struct Constant {
  std::weak_ptr<Storage> storage;
  bool is_verified = false;  // its bytes have the digest of its key
  bool expired() const { return storage.expired(); }
};

struct Pools {
  std::mutex mutex;
  std::map<ConstantKey, Constant> constants;
  std::map<StateKey, std::weak_ptr<State>> states;
};

Pools& pools() {
  static auto* all = new Pools();
  return *all;
}

template <typename Map>
void drop_expired(Map& map) {
  for (auto it = map.begin(); it != map.end();) it = it->second.expired() ? map.erase(it) : std::next(it);
}

class Loader {
 public:
  Loader(const BlobSpec& blob, const NamedDataMap* map, const Placement& placement)
      : blob_(blob),
        data_(map),
        map_(map),
        placement_(placement),
        verifies_(verify_weights()),
        fqns_(blob.storages.size()),
        alignments_(blob.storages.size(), 1),
        checker_(placement.device_type == kCuda ? placement.stream : nullptr,
                 placement.device_type == kCuda ? kRoomForGpu : WeightChecker::kRoom) {
    for (const ConstantSpec& constant : blob.constants) {
      if (fqns_[constant.storage].empty())
        fqns_[constant.storage] = constant.fqn.empty() ? constant.name : constant.fqn;
      alignments_[constant.storage] = std::max(alignments_[constant.storage], dtype_size(constant.dtype));
    }
    if (placement.device_type == kCuda) uploader_.emplace(*placement.stream);
  }

  LoadedStorages run() {
    Pools& all = pools();
    const std::lock_guard<std::mutex> lock(all.mutex);
    drop_expired(all.constants);
    drop_expired(all.states);
    LoadedStorages loaded;
    try {
      fill(all, loaded);
      fetch_all();
      checker_.finish();
      for (const auto& [key, fetched] : fetched_) {
        all.constants[key] = {fetched.storage, verifies_};
        for (const size_t place : fetched.places) loaded.storages[place] = fetched.storage;
      }
    } catch (...) {
      // What was loaded is freed now; no copy may still be writing to it.
      checker_.give_up();
      for (const ConstantKey& key : being_verified_) all.constants.erase(key);
      if (placement_.stream != nullptr) placement_.stream->synchronize();
      throw;
    }
    for (const auto& state : loaded.states) state->is_verified |= verifies_;
    // What others may find in the pools must be complete.
    if (placement_.stream != nullptr) placement_.stream->synchronize();
    if (!loaded.states.empty()) loaded.program = data_.digest();
    return loaded;
  }

 private:
  // A weight of this GPU's, complete once the checker has finished.
  struct Fetched {
    StoragePtr storage;
    std::vector<size_t> places;  // of the blob's storages
  };

  void fill(Pools& all, LoadedStorages& loaded) {
    for (size_t i = 0; i < blob_.storages.size(); ++i) {
      if (blob_.storages[i].is_mutable) {
        loaded.states.push_back(state(all, i));
        loaded.storages.push_back(loaded.states.back()->storage());
        check(loaded.states.back(), i);
      } else {
        loaded.storages.push_back(constant(all, i));
      }
    }
  }

  StoragePtr constant(Pools& all, size_t index) {
    const StorageSpec& spec = blob_.storages[index];
    const auto key = [&](const void* program) {
      return ConstantKey{spec.sha256, spec.nbytes, placement_.device_type, placement_.device_index, program};
    };
    if (StoragePtr shared = found(all, key(nullptr), index)) return shared;
    if (spec.data_key.empty()) {
      const StoragePtr storage = zeros(spec.nbytes);
      all.constants[key(nullptr)] = {storage, true};
      return storage;
    }
    if (placement_.device_type == kCuda) {
      fetch(key(nullptr), index);
      return nullptr;
    }
    if (StoragePtr shared = found(all, key(program()), index)) return shared;
    checker_.make_room();
    auto buffer = std::make_shared<FreeableBuffer>(data_.load(spec, fqns_[index]));
    if (reinterpret_cast<uintptr_t>(buffer->data()) % alignments_[index] == 0) {
      StoragePtr storage = std::make_shared<BufferStorage>(std::move(*buffer));
      add(all, key(program()), storage, index);
      return storage;
    }
    StoragePtr storage = copied(*buffer);
    add(all, key(nullptr), storage, index);
    return storage;
  }

  // Will have threads load a weight, make room for it on the GPU, and copy it there. ExecuTorch's data
  // loaders may be called by several threads.
  void fetch(const ConstantKey& key, size_t index) {
    Fetched& fetched = fetched_[key];
    fetched.places.push_back(index);
    if (fetched.places.size() > 1) return;
    check(nullptr, static_cast<size_t>(blob_.storages[index].nbytes), blob_.storages[index].sha256, nullptr,
          index, [this, &fetched, index](WeightCheck& check) {
            auto buffer = std::make_shared<FreeableBuffer>(data_.load(blob_.storages[index], fqns_[index]));
            // Not before its size is known to be true.
            fetched.storage = empty(buffer->size());
            check.data = buffer->data();
            check.destination = fetched.storage->data;
            check.owner = std::move(buffer);
          });
  }

  // The largest first: a weight is one thread's, and none is to begin with a large one when all others are
  // done.
  void fetch_all() {
    const auto is_larger = [](const WeightCheck& a, const WeightCheck& b) { return a.nbytes > b.nbytes; };
    std::stable_sort(to_fetch_.begin(), to_fetch_.end(), is_larger);
    for (WeightCheck& check : to_fetch_) checker_.add(std::move(check));
    to_fetch_.clear();
  }

  // Whose bytes are used where they lie. Looked up once, for a program has many keys.
  const void* program() {
    if (program_ == nullptr) program_ = data_.program();
    return program_ == nullptr ? map_ : program_;
  }

  // The storage of that key, if it may be shared.
  StoragePtr found(Pools& all, const ConstantKey& key, size_t index) {
    const auto it = all.constants.find(key);
    StoragePtr storage = it == all.constants.end() ? nullptr : it->second.storage.lock();
    if (storage == nullptr || it->second.is_verified || !verifies_) return storage;
    // A program that was loaded without verification brought it. Bytes on a GPU cannot be compared any more,
    // so this program's own are loaded.
    if (storage->device_type != kHost) return nullptr;
    add(all, key, storage, index);
    return storage;
  }

  // Puts a storage in host memory into the pool, to be verified. Until run() ends nobody else sees the pool.
  void add(Pools& all, const ConstantKey& key, const StoragePtr& storage, size_t index) {
    all.constants[key] = {storage, false};
    if (!verifies_) return;
    being_verified_.push_back(key);
    check(storage->data, storage->nbytes, blob_.storages[index].sha256, storage, index);
    all.constants[key].is_verified = true;
  }

  void check(const std::shared_ptr<State>& state, size_t index) {
    if (!state->initial() || state->is_verified) return;
    // The digest of the method that created it, which is the first to come here.
    if (!state->digest) state->digest = blob_.storages[index].sha256;
    if (verifies_) check(state->initial()->data(), state->initial()->size(), *state->digest, state, index);
  }

  void check(const void* data, size_t nbytes, const Digest& expected, std::shared_ptr<const void> owner,
             size_t index, std::function<void(WeightCheck&)> fetch = nullptr) {
    const std::string name = fqns_[index].empty() ? "a weight" : fqns_[index];
    const auto compared = verifies_ ? std::optional<Digest>(expected) : std::nullopt;
    WeightCheck check{name, compared, data, nbytes, std::move(owner), nullptr, std::move(fetch), index};
    if (check.fetch) {
      to_fetch_.push_back(std::move(check));
    } else {
      checker_.add(std::move(check));
    }
  }

  std::shared_ptr<State> state(Pools& all, size_t index) {
    const StorageSpec& spec = blob_.storages[index];
    const void* program = data_.program();
    if (program == nullptr) {
      fail(ErrorCode::InvalidProgram,
           "the program holds state (%s) but not the key etcuda/program that identifies it. Export the model "
           "again, "
           "and pass its .ptd file if it has one.",
           spec.state_name.c_str());
    }
    const StateKey key{program, spec.state_name, placement_.device_type, placement_.device_index};
    if (const auto it = all.states.find(key); it != all.states.end()) {
      if (auto shared = it->second.lock()) {
        if (shared->storage()->nbytes != spec.nbytes) {
          fail(ErrorCode::InvalidProgram,
               "the state %s has %" PRIu64
               " bytes in method %s but %zu in another method of the program. Export the "
               "methods together, from one model.",
               spec.state_name.c_str(), spec.nbytes, blob_.method.c_str(), shared->storage()->nbytes);
        }
        return shared;
      }
    }
    std::shared_ptr<State> created;
    if (spec.data_key.empty()) {
      created = std::make_shared<State>(layout(index), zeros(spec.nbytes), std::nullopt);
    } else {
      FreeableBuffer initial = data_.load(spec, fqns_[index]);
      StoragePtr storage = copied(initial);
      created = std::make_shared<State>(layout(index), std::move(storage), std::move(initial));
    }
    all.states[key] = created;
    return created;
  }

  StateLayout layout(size_t index) const {
    const StorageSpec& spec = blob_.storages[index];
    const auto size = static_cast<int64_t>(spec.nbytes);
    for (const ConstantSpec& constant : blob_.constants) {
      if (constant.storage == index && constant.storage_offset == 0 && constant.nbytes == spec.nbytes)
        return {spec.state_name, spec.nbytes, constant.dtype, constant.sizes, constant.strides};
    }
    return {spec.state_name, spec.nbytes, kUInt8, {size}, {1}};
  }

  StoragePtr empty(uint64_t nbytes) {
    return allocate_persistent_storage(static_cast<size_t>(nbytes), placement_.device_type,
                                       placement_.device_index);
  }

  StoragePtr zeros(uint64_t nbytes) {
    StoragePtr storage = empty(nbytes);
    zero_bytes(storage->data, storage->device_type, storage->nbytes);
    return storage;
  }

  StoragePtr copied(const FreeableBuffer& buffer) {
    StoragePtr storage = empty(buffer.size());
    copy(*storage, buffer);
    return storage;
  }

  void copy(const Storage& storage, const FreeableBuffer& buffer) {
    if (uploader_) {
      uploader_->upload(storage.data, buffer.data(), buffer.size());
    } else if (buffer.size() != 0) {
      std::memcpy(storage.data, buffer.data(), buffer.size());
    }
  }

  const BlobSpec& blob_;
  const NamedData data_;
  const void* const map_;
  const Placement placement_;
  const bool verifies_;
  std::vector<std::string> fqns_;
  std::vector<size_t> alignments_;
  const void* program_ = nullptr;
  std::vector<ConstantKey> being_verified_;
  std::map<ConstantKey, Fetched> fetched_;
  std::vector<WeightCheck> to_fetch_;
  WeightChecker checker_;
  std::optional<Uploader> uploader_;
};

}  // namespace

std::string StateLayout::describe() const {
  return std::string(dtype_name(dtype)) + " " +
         describe_shape(static_cast<int64_t>(sizes.size()), sizes.data());
}

bool StateLayout::operator==(const StateLayout& other) const {
  return name == other.name && nbytes == other.nbytes && dtype == other.dtype && sizes == other.sizes &&
         strides == other.strides;
}

void State::reset() {
  if (storage_->device_type == kCuda) {
    Stream stream(storage_->device_index);
    const StreamScope scope(stream);
    if (initial_) {
      copy_bytes(storage_->data, kCuda, initial_->data(), kHost, storage_->nbytes);
    } else {
      zero_bytes(storage_->data, kCuda, storage_->nbytes);
    }
    stream.synchronize();
  } else if (initial_) {
    copy_bytes(storage_->data, kHost, initial_->data(), kHost, storage_->nbytes);
  } else {
    zero_bytes(storage_->data, kHost, storage_->nbytes);
  }
}

LoadedStorages load_storages(const BlobSpec& blob, const NamedDataMap* map, const Placement& placement) {
  return Loader(blob, map, placement).run();
}

size_t reset_all_states() {
  std::vector<std::shared_ptr<State>> alive;
  {
    const std::lock_guard<std::mutex> lock(pools().mutex);
    for (const auto& entry : pools().states) {
      if (auto state = entry.second.lock()) alive.push_back(std::move(state));
    }
  }
  for (const auto& state : alive) state->reset();
  return alive.size();
}

}  // namespace etcuda
