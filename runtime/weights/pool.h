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

// One buffer that calls write to. Its initial content is kept for reset().
class State {
 public:
  State(StoragePtr storage, std::optional<FreeableBuffer> initial)
      : storage_(std::move(storage)), initial_(std::move(initial)) {}
  const StoragePtr& storage() const { return storage_; }
  const std::optional<FreeableBuffer>& initial() const { return initial_; }
  // Not to be called while a delegate that uses it executes.
  void reset();

  // Of the initial content, and whether its bytes have it. For load_storages.
  std::optional<Digest> digest;
  bool is_verified = false;

 private:
  StoragePtr storage_;
  std::optional<FreeableBuffer> initial_;  // none: zeros
};

// What one delegate holds: the pools themselves only remember, so the last delegate frees.
struct LoadedStorages {
  std::vector<StoragePtr> storages;  // by index in the blob
  std::vector<std::shared_ptr<State>> states;
};

// Throws Failure. `blob` names the constants in messages.
LoadedStorages load_storages(const BlobSpec& blob, const NamedDataMap* map, const Placement& placement);

// Resets every state in the process; returns how many there are.
size_t reset_all_states();

}  // namespace etcuda
