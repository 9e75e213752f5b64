// Storages that outlive a call: constants, shared by content, and state, shared by name within a program.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "blob/blob.h"
#include "memory/tensor.h"
#include "weights/named_data.h"

namespace etcuda {

class Stream;

// Where a delegate's storages are to live.
struct Placement {
  DeviceType device_type = kHost;
  int device_index = 0;
  Stream* stream = nullptr;  // CUDA only
};

// How a state is laid out in its storage: as the tensor that covers it, or as bytes where there is none.
struct StateLayout {
  std::string name;
  uint64_t nbytes = 0;
  DType dtype = kUInt8;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  // "float16 [1, 8, 4096, 128]", for messages.
  std::string describe() const;
  bool operator==(const StateLayout& other) const;
  bool operator!=(const StateLayout& other) const { return !(*this == other); }
};

// One buffer that calls write to, outside of any session. Its initial content is kept for reset() and for
// sessions.
class State {
 public:
  State(StateLayout layout, StoragePtr storage, std::optional<FreeableBuffer> initial)
      : layout_(std::move(layout)), storage_(std::move(storage)), initial_(std::move(initial)) {}
  const StateLayout& layout() const { return layout_; }
  const StoragePtr& storage() const { return storage_; }
  const std::optional<FreeableBuffer>& initial() const { return initial_; }
  // Not to be called while a delegate that uses it executes.
  void reset();

  // Of the initial content, and whether its bytes have it. For load_storages.
  std::optional<Digest> digest;
  bool is_verified = false;

 private:
  const StateLayout layout_;
  StoragePtr storage_;
  std::optional<FreeableBuffer> initial_;  // none: zeros
};

// What one delegate holds: the pools themselves only remember, so the last delegate frees.
struct LoadedStorages {
  std::vector<StoragePtr> storages;            // by index in the blob
  std::vector<std::shared_ptr<State>> states;  // in the order of the blob's mutable storages
  Digest program{};                            // NamedData::digest(), if there is state
};

// Throws Failure. `blob` names the constants in messages.
LoadedStorages load_storages(const BlobSpec& blob, const NamedDataMap* map, const Placement& placement);

// Resets every state in the process; returns how many there are.
size_t reset_all_states();

}  // namespace etcuda
