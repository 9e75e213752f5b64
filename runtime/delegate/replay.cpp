// Calls of a delegate as CUDA graphs: recorded once, launched from then on.
#include <cstring>

#include "core/failure.h"
#include "cuda/copy.h"
#include "cuda/graph_settings.h"
#include "cuda/pinned.h"
#include "delegate/delegate.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

// As an allocation of its own would be aligned for all that code or cuBLASLt look at.
constexpr size_t kSlotAlignment = 256;
// From here on an output is worth asking whether it is pinned: a copy of fewer bytes costs as much.
constexpr size_t kManyBytes = size_t{32} << 10;
// Calls with a key of their own each, before the log says that no graph is of use.
constexpr uint32_t kManyMisses = 32;

size_t round_up(size_t nbytes) {
  return (nbytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

enum Place : int64_t { kOnHost, kOnDevice, kNumber };

StoragePtr host_copy(const Tensor& result, size_t nbytes) {
  StoragePtr copy = allocate_persistent_storage(nbytes, kHost, 0);
  if (nbytes != 0) std::memcpy(copy->data, result.data(), nbytes);
  return copy;
}

// Which pinned allocation an output on the host lies in; 0 for none.
uint64_t pinned_output(const EtTensor& output) {
  return output.nbytes() < kManyBytes ? 0 : pinned_allocation(output.const_data_ptr(), output.nbytes());
}

// Whether the result's bytes are the output's as they are.
bool has_layout(const Tensor& result, const ArgumentView& output) {
  if (result.extent() != result.numel()) return false;
  for (size_t i = 0; i < static_cast<size_t>(result.rank); ++i) {
    if (result.sizes[i] > 1 && result.strides[i] != output.strides[i]) return false;
  }
  return true;
}

}  // namespace

GraphCache::Entry* Delegate::graph_entry(const std::shared_ptr<SessionState>& session) {
  if (graphs_ == nullptr) return nullptr;
  if (!cuda_graphs_enabled()) {
    if (!graphs_->is_empty()) graphs_->clear();
    return nullptr;
  }
  key_.clear();
  key_.push_back(session == nullptr ? 0 : static_cast<int64_t>(session->id()));
  key_.push_back(session == nullptr ? 0 : static_cast<int64_t>(session->version()));
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const ArgumentView& view = inputs_[i];
    if (is_number(i)) {
      int64_t bits = 0;
      std::memcpy(&bits, view.data, view.nbytes);
      key_.insert(key_.end(), {kNumber, bits});
      continue;
    }
    key_.push_back(view.device == kCuda ? kOnDevice : kOnHost);
    if (view.device == kCuda) key_.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(view.data)));
    const std::vector<DimSpec>& dims = blob_.inputs[i].dims;
    for (size_t dim = 0; dim < dims.size(); ++dim) {
      if (dims[dim].min != dims[dim].max) key_.push_back(view.sizes[dim]);
    }
  }
  are_pinned_.assign(arguments_.size() - inputs_.size(), false);
  for (size_t i = inputs_.size(); i < arguments_.size(); ++i) {
    int64_t allocation = 0, address = 0;
    if (arguments_[i]->isTensor()) {
      const EtTensor& output = arguments_[i]->toTensor();
      address = device_address(output);
      if (address == 0) allocation = static_cast<int64_t>(pinned_output(output));
      are_pinned_[i - inputs_.size()] = allocation != 0;
      if (allocation != 0)
        address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(output.const_data_ptr()));
    }
    key_.insert(key_.end(), {allocation, address});
  }
  GraphCache::Entry& entry = graphs_->find(key_);
  if (graphs_->num_misses() >= kManyMisses) {
    explain("the session, or the sizes, numbers or addresses of its arguments, differ from call to call.");
  }
  return &entry;
}

// The call has run, so the image has the state of its session, and has done what AOTInductor does once for
// it.
void Delegate::capture_if_due(GraphCache::Entry& entry, const std::shared_ptr<SessionState>& session) {
  ++entry.num_calls;
  // The call may have made the session's buffers.
  if (session != nullptr) entry.key[kSessionVersion] = static_cast<int64_t>(session->version());
  if (!graphs_->is_due(entry) || !graphs_->make_room(entry)) return;
  entry.session = session;
  entry.has_session = session != nullptr;
  std::string reason;
  for (const bool is_second : {false, true}) {
    try {
      // What is kept for reuse cannot be given up during a capture.
      if (is_second) cuda_allocator(device_index_).empty_cache();
      entry.graph = capture();
      graphs_->settle(entry);
      ++graph_counts().captures;
      return;
    } catch (const Failure& failure) {
      reason = failure.what();
      take_shim_error();
      if (failure.code() != ErrorCode::MemoryAllocationFailed) break;
    } catch (const std::exception& error) {
      reason = error.what();
      take_shim_error();
      break;
    }
  }
  ++graph_counts().refusals;
  graphs_->refuse(entry);
  const std::string refusal = take_capture_refusal();
  explain(refusal.empty() ? reason.c_str() : refusal.c_str());
}

void Delegate::explain(const char* reason) {
  if (has_explained_) return;
  has_explained_ = true;
  report_warning(format("method %s runs without a CUDA graph, as before: %s", blob_.method.c_str(), reason));
}

std::unique_ptr<CapturedCall> Delegate::capture() {
  auto made = std::make_unique<CapturedCall>();
  size_t staged_bytes = 0;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const bool is_staged = inputs_[i].device == kHost && !is_number(i) && inputs_[i].nbytes != 0;
    made->input_slots.push_back(is_staged ? staged_bytes : CapturedCall::kNotStaged);
    if (is_staged) staged_bytes += round_up(inputs_[i].nbytes);
  }
  graphs_->pool()->begin_graph();
  graphs_->staging()->begin_graph();
  // Returned to the pool when all addresses are chosen: graphs do not run at the same time.
  std::vector<StoragePtr> staging{graphs_->staging()->allocate(staged_bytes)};
  made->input_staging = static_cast<char*>(staging[0]->data);
  Capture capture(*stream_, graphs_->pool());
  std::vector<TensorPtr> inputs = capture_inputs(*made, staged_bytes);
  capture_outputs(*made, run(std::move(inputs)), &staging);
  made->exec = capture.finish();
  return made;
}

std::vector<Delegate::TensorPtr> Delegate::capture_inputs(const CapturedCall& call, size_t staged_bytes) {
  StoragePtr staged;
  if (staged_bytes != 0) {
    staged = allocate_storage(staged_bytes, kCuda, device_index_);
    copy_bytes(staged->data, kCuda, call.input_staging, kHost, staged_bytes);
  }
  std::vector<TensorPtr> inputs;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const ArgumentView& view = inputs_[i];
    const size_t slot = call.input_slots[i];
    if (slot == CapturedCall::kNotStaged) {
      inputs.push_back(bind_input(i, nullptr));
      continue;
    }
    inputs.push_back(make_view(share_storage(staged, slot, view.nbytes), view.rank, view.sizes, view.strides,
                               0, blob_.inputs[i].dtype));
  }
  return inputs;
}

void Delegate::capture_outputs(CapturedCall& call, const std::vector<TensorPtr>& results,
                               std::vector<StoragePtr>* staging) {
  prepare_outputs(results);
  for (size_t i = 0; i < results.size(); ++i) {
    const Tensor& result = *results[i];
    CapturedCall::Result& kept = call.results.emplace_back();
    kept.layout = result;
    kept.layout.storage.reset();
    std::copy_n(outputs_[i].strides, result.rank, kept.strides.begin());
    if (outputs_[i].device == kCuda) {
      kept.is_in_place = true;
      copy_tensor(*device_target(i, result), result);
      continue;
    }
    const size_t nbytes = static_cast<size_t>(result.extent()) * dtype_size(result.dtype);
    if (are_pinned_[i] && result.device_type() == kCuda && has_layout(result, outputs_[i])) {
      kept.is_in_place = true;
      copy_bytes(outputs_[i].data, kHost, result.data(), kCuda, nbytes);
      continue;
    }
    if (result.device_type() == kHost) {
      call.host_results.push_back(host_copy(result, nbytes));
      kept.fetched = call.host_results.back()->data;
    } else {
      staging->push_back(graphs_->staging()->allocate(nbytes));
      copy_bytes(staging->back()->data, kHost, result.data(), kCuda, nbytes);
      kept.fetched = staging->back()->data;
    }
  }
}

bool Delegate::replay(GraphCache::Entry& entry) {
  const CapturedCall& call = *entry.graph;
  outputs_.clear();
  for (size_t i = 0; i < call.results.size(); ++i) {
    const CapturedCall::Result& result = call.results[i];
    outputs_.push_back(prepare_output(blob_.outputs[i], i, *arguments_[inputs_.size() + i], result.layout));
    if (result.is_in_place &&
        !std::equal(outputs_[i].strides, outputs_[i].strides + outputs_[i].rank, result.strides.begin())) {
      return false;
    }
  }
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (call.input_slots[i] == CapturedCall::kNotStaged) continue;
    std::memcpy(call.input_staging + call.input_slots[i], inputs_[i].data, inputs_[i].nbytes);
  }
  if (const CUresult result = call.exec.launch(stream_->handle()); result != kCudaSuccess) {
    // Nothing has run.
    ++graph_counts().refusals;
    graphs_->refuse(entry);
    explain(("cuGraphLaunch failed with " + Driver::get()->describe(result) + ".").c_str());
    return false;
  }
  stream_->synchronize();
  for (size_t i = 0; i < call.results.size(); ++i) {
    const CapturedCall::Result& result = call.results[i];
    if (result.fetched == nullptr) continue;
    const Tensor& layout = result.layout;
    strided_copy(layout.rank, layout.sizes.data(), {outputs_[i].data, outputs_[i].strides, layout.dtype},
                 {const_cast<void*>(result.fetched), layout.strides.data(), layout.dtype});
  }
  ++graph_counts().replays;
  return true;
}

}  // namespace etcuda
