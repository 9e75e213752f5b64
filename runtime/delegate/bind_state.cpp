// Gives the image the state of the session that a call runs in.
#include <algorithm>

#include "core/failure.h"
#include "delegate/delegate.h"
#include "shims/lend_handles.h"

namespace etcuda {

void Delegate::bind_state(SessionState* session) {
  if (loaded_.states.empty()) return;
  const auto is_bound = [&](uint64_t id, uint64_t version) {
    return bound_ && bound_->session == id && bound_->version == version;
  };
  if (session == nullptr) {
    if (is_bound(0, 0)) return;
    std::vector<StoragePtr> stock;
    for (const auto& state : loaded_.states) stock.push_back(state->storage());
    bind_storages(stock);
    bound_ = Bound{};
  } else {
    if (is_bound(session->id(), session->version())) return;
    const std::vector<StoragePtr> storages =
        session->bind({blob_.method, loaded_.program, loaded_.states, device_, device_index_});
    bind_storages(storages);
    bound_ = Bound{session->id(), session->version()};
  }
}

// `storages`: in the order of the blob's mutable ones.
void Delegate::bind_storages(const std::vector<StoragePtr>& storages) {
  bound_.reset();
  std::vector<StoragePtr> by_index(blob_.storages.size());
  auto next = storages.begin();
  for (size_t i = 0; i < blob_.storages.size(); ++i) {
    if (!blob_.storages[i].is_mutable) continue;
    // Borrowed, so that the delegate keeps no session's memory. Before the image uses it again, the session
    // that owns it has to be current, or another one is bound.
    const Storage& storage = **next++;
    by_index[i] = borrow_storage(storage.data, storage.nbytes, storage.device_type, storage.device_index);
  }
  std::vector<ConstantMapEntry> entries;
  for (size_t i = 0; i < blob_.constants.size(); ++i) {
    const ConstantSpec& constant = blob_.constants[i];
    if (by_index[constant.storage] == nullptr) continue;
    TensorPtr view = view_constant(constant, by_index[constant.storage]);
    entries.push_back({constant.name.c_str(), view.get()});
    replaced_.push_back(std::move(view));
    std::swap(constants_[i], replaced_.back());
  }
  // Steps take their constants as arguments of each call.
  if (blob_.steps.empty()) {
    const Part& part = parts_[0];
    const LendHandles lend;
    if (part.image->aoti().update_constants(part.container, entries.data(), entries.size(), false, false) !=
        kAotiSuccess)
      fail_from_image(part, "changing the session of", ErrorCode::Internal);
  }
  replaced_.clear();
}

}  // namespace etcuda
