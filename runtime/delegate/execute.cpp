// One call of a delegate.
#include <cstring>

#include "core/failure.h"
#include "cuda/copy.h"
#include "delegate/delegate.h"
#include "delegate/scopes.h"
#include "host/strided_copy.h"

namespace etcuda {
namespace {

// What compiled kernels assume of the addresses of their arguments.
constexpr size_t kDeviceAlignment = 16;
constexpr size_t kStagingAlignment = 64;

size_t round_up(size_t nbytes) {
  return (nbytes + kStagingAlignment - 1) / kStagingAlignment * kStagingAlignment;
}

// After a failure, whose message must not be replaced by that of a second one.
void settle(Stream& stream) noexcept {
  try {
    stream.synchronize();
  } catch (const std::exception& error) {
    report_error(error.what());
  }
}

}  // namespace

void Delegate::execute(::executorch::runtime::Span<EValue*> passed) {
  const std::shared_ptr<SessionState> session = loaded_.states.empty() ? nullptr : current_session();
  // The session first: whoever has it may wait for the delegate, but not the other way round.
  std::unique_lock<std::mutex> session_lock;
  if (session != nullptr) session_lock = std::unique_lock<std::mutex>(session->mutex());
  const std::lock_guard<std::mutex> lock(mutex_);
  call(passed, session);
}

void Delegate::call(::executorch::runtime::Span<EValue*> passed,
                    const std::shared_ptr<SessionState>& session) {
  const size_t ignored = blob_.ignored_arguments.size();
  if (passed.size() != blob_.inputs.size() + ignored + blob_.outputs.size()) {
    fail(ErrorCode::InvalidArgument,
         "method %s: expected %zu inputs, %zu of them ignored, and %zu outputs, got %zu arguments. Export "
         "the program "
         "again.",
         blob_.method.c_str(), blob_.inputs.size() + ignored, ignored, blob_.outputs.size(), passed.size());
  }
  arguments_.clear();
  auto skip = blob_.ignored_arguments.begin();
  for (size_t i = 0; i < passed.size(); ++i) {
    if (skip != blob_.ignored_arguments.end() && *skip == i) {
      ++skip;
    } else {
      arguments_.push_back(passed[i]);
    }
  }
  const ImageScope scope(stream_.get(), modules_, blob_.allow_tf32);
  const GraphUse use(graphs_.get());
  try {
    check_inputs();
    GraphCache::Entry* const entry = graph_entry(session);
    if (entry != nullptr && entry->graph != nullptr && replay(*entry)) return;
    std::vector<TensorPtr> inputs = bind_inputs();
    bind_state(session.get());
    publish(run(std::move(inputs)));
    if (entry != nullptr) capture_if_due(*entry, session);
  } catch (...) {
    // Memory that the failed call returned to the allocator must be idle before anyone uses it.
    if (stream_) settle(*stream_);
    throw;
  }
}

char* Delegate::staging(size_t nbytes) {
  if (!staging_ || staging_->nbytes < nbytes) {
    staging_.reset();
    staging_ = allocate_pinned_storage(nbytes);
  }
  return static_cast<char*>(staging_->data);
}

void Delegate::check_inputs() {
  const size_t count = blob_.inputs.size();
  inputs_.clear();
  numbers_.assign(count, 0);
  for (size_t i = 0; i < count; ++i) {
    inputs_.push_back(check_input(blob_.inputs[i], i, *arguments_[i], &numbers_[i]));
    const ArgumentView& view = inputs_.back();
    if (view.device == kCuda && (device_ != kCuda || view.device_index != device_index_)) {
      fail(ErrorCode::InvalidArgument,
           "input %zu (%s): expected a tensor on %s, got one on cuda:%d. Move it before passing it.", i,
           blob_.inputs[i].name.c_str(),
           device_ == kCuda ? format("cpu or cuda:%d", device_index_).c_str() : "cpu", view.device_index);
    }
  }
  sizes_.compute(blob_, inputs_);
}

std::vector<Delegate::TensorPtr> Delegate::bind_inputs() {
  const size_t count = inputs_.size();
  size_t staged_bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    if (device_ == kCuda && inputs_[i].device == kHost && !is_number(i))
      staged_bytes += round_up(inputs_[i].nbytes);
  }
  if (staged_bytes != 0) staging(staged_bytes);
  size_t staged = 0;
  std::vector<TensorPtr> inputs;
  inputs.reserve(count);
  for (size_t i = 0; i < count; ++i) inputs.push_back(bind_input(i, &staged));
  return inputs;
}

// As a tensor on the delegate's device; numbers stay on the host. A tensor there is put on the GPU through
// the staging buffer, `*staged` bytes of which are taken.
Delegate::TensorPtr Delegate::bind_input(size_t index, size_t* staged) {
  const ArgumentView& view = inputs_[index];
  const DType dtype = blob_.inputs[index].dtype;
  const auto view_of = [&](StoragePtr storage) {
    return make_view(std::move(storage), view.rank, view.sizes, view.strides, 0, dtype);
  };
  if (device_ != kCuda || is_number(index)) {
    return view_of(borrow_storage(view.data, view.nbytes, kHost, 0));
  }
  if (view.device == kCuda && reinterpret_cast<uintptr_t>(view.data) % kDeviceAlignment == 0) {
    return view_of(borrow_storage(view.data, view.nbytes, kCuda, device_index_));
  }
  const StoragePtr storage = allocate_storage(view.nbytes, kCuda, device_index_);
  if (view.device == kCuda) {
    copy_bytes(storage->data, kCuda, view.data, kCuda, view.nbytes);
  } else if (view.nbytes != 0) {
    char* slot = static_cast<char*>(staging_->data) + *staged;
    *staged += round_up(view.nbytes);
    std::memcpy(slot, view.data, view.nbytes);
    copy_bytes(storage->data, kCuda, slot, kHost, view.nbytes);
  }
  return view_of(storage);
}

std::vector<Delegate::TensorPtr> Delegate::run(std::vector<TensorPtr> inputs) {
  std::vector<TensorPtr> outputs = blob_.steps.empty()
                                       ? run_part(parts_[0], std::move(inputs), blob_.outputs.size())
                                       : run_steps(std::move(inputs));
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] == nullptr) {
      fail(ErrorCode::Internal, "method %s gave no output %zu (%s). Export the model again.",
           blob_.method.c_str(), i, blob_.outputs[i].name.c_str());
    }
  }
  return outputs;
}

std::vector<Delegate::TensorPtr> Delegate::run_part(const Part& part, std::vector<TensorPtr> inputs,
                                                    size_t num_outputs) {
  std::vector<TensorHandle> input_handles;
  std::vector<TensorHandle> output_handles(num_outputs, nullptr);
  input_handles.reserve(inputs.size());
  for (TensorPtr& input : inputs) input_handles.push_back(input.release());
  take_shim_error();
  void* stream = stream_ ? static_cast<void*>(stream_->handle()) : nullptr;
  const AotiError status =
      part.image->aoti().run(part.container, input_handles.data(), input_handles.size(),
                             output_handles.data(), output_handles.size(), stream, nullptr);
  std::vector<TensorPtr> outputs;
  outputs.reserve(output_handles.size());
  for (TensorHandle handle : output_handles) outputs.emplace_back(handle);
  if (status != kAotiSuccess) {
    // A handle that was stolen is null by now.
    for (TensorHandle handle : input_handles) delete handle;
    fail_from_image(part, "running", ErrorCode::Internal);
  }
  return outputs;
}

// Checks the results, and gives the outputs of the call their shapes.
void Delegate::prepare_outputs(const std::vector<TensorPtr>& results) {
  outputs_.clear();
  for (size_t i = 0; i < results.size(); ++i) {
    check_output(blob_.outputs[i], i, *results[i]);
    sizes_.check_output(i, results[i]->sizes.data());
    outputs_.push_back(
        prepare_output(blob_.outputs[i], i, *arguments_[blob_.inputs.size() + i], *results[i]));
    if (outputs_[i].device == kCuda && (device_ != kCuda || outputs_[i].device_index != device_index_)) {
      fail(ErrorCode::InvalidArgument, "output %zu (%s): the tensor is on cuda:%d, the method runs on %s.", i,
           blob_.outputs[i].name.c_str(), outputs_[i].device_index, device_name(device_));
    }
  }
}

// The caller's tensor on the GPU that output `index` is to be copied to.
Delegate::TensorPtr Delegate::device_target(size_t index, const Tensor& result) const {
  const ArgumentView& output = outputs_[index];
  return make_view(borrow_storage(output.data, output.nbytes, kCuda, device_index_), output.rank,
                   output.sizes, output.strides, 0, result.dtype);
}

void Delegate::publish(const std::vector<TensorPtr>& results) {
  prepare_outputs(results);
  if (device_ == kCuda) return publish_from_device(results);
  for (size_t i = 0; i < results.size(); ++i) {
    const Tensor& result = *results[i];
    strided_copy(result.rank, result.sizes.data(), {outputs_[i].data, outputs_[i].strides, result.dtype},
                 {result.data(), result.strides.data(), result.dtype});
  }
}

void Delegate::publish_from_device(const std::vector<TensorPtr>& results) {
  size_t total = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const bool through_staging = outputs_[i].device == kHost && results[i]->device_type() == kCuda;
    if (through_staging)
      total += round_up(static_cast<size_t>(results[i]->extent()) * dtype_size(results[i]->dtype));
  }
  // The inputs' copies may still read the buffer that is about to be replaced.
  if (total != 0 && (!staging_ || staging_->nbytes < total)) stream_->synchronize();
  if (total != 0) staging(total);
  std::vector<const char*> fetched(results.size(), nullptr);
  size_t staged = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const Tensor& result = *results[i];
    if (outputs_[i].device == kCuda) {
      copy_tensor(*device_target(i, result), result);
    } else if (result.device_type() == kCuda) {
      const size_t nbytes = static_cast<size_t>(result.extent()) * dtype_size(result.dtype);
      char* slot = static_cast<char*>(staging_ ? staging_->data : nullptr) + staged;
      staged += round_up(nbytes);
      copy_bytes(slot, kHost, result.data(), kCuda, nbytes);
      fetched[i] = slot;
    }
  }
  stream_->synchronize();
  for (size_t i = 0; i < results.size(); ++i) {
    if (outputs_[i].device == kCuda) continue;
    const Tensor& result = *results[i];
    const void* source = fetched[i] != nullptr ? fetched[i] : result.data();
    strided_copy(result.rank, result.sizes.data(), {outputs_[i].data, outputs_[i].strides, result.dtype},
                 {const_cast<void*>(source), result.strides.data(), result.dtype});
  }
}

}  // namespace etcuda
