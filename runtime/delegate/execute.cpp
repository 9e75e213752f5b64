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
  call(passed, session.get());
}

void Delegate::call(::executorch::runtime::Span<EValue*> passed, SessionState* session) {
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
  const ::executorch::runtime::Span<EValue*> arguments(arguments_.data(), arguments_.size());
  const ImageScope scope(stream_.get(), modules_, blob_.allow_tf32);
  try {
    std::vector<TensorPtr> inputs = bind_inputs(arguments);
    bind_state(session);
    publish(run(std::move(inputs)), arguments);
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

std::vector<Delegate::TensorPtr> Delegate::bind_inputs(::executorch::runtime::Span<EValue*> arguments) {
  const size_t count = blob_.inputs.size();
  inputs_.clear();
  std::vector<StoragePtr> scalars(count);
  size_t staged_bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!arguments[i]->isTensor()) scalars[i] = allocate_storage(sizeof(int64_t), kHost, 0);
    void* scalar = scalars[i] ? scalars[i]->data : nullptr;
    inputs_.push_back(check_input(blob_.inputs[i], i, *arguments[i], scalar));
    const ArgumentView& view = inputs_.back();
    if (view.device == kCuda && (device_ != kCuda || view.device_index != device_index_)) {
      fail(ErrorCode::InvalidArgument,
           "input %zu (%s): expected a tensor on %s, got one on cuda:%d. Move it before passing it.", i,
           blob_.inputs[i].name.c_str(),
           device_ == kCuda ? format("cpu or cuda:%d", device_index_).c_str() : "cpu", view.device_index);
    }
    if (device_ == kCuda && view.device == kHost && !scalars[i]) staged_bytes += round_up(view.nbytes);
  }
  sizes_.compute(blob_, inputs_);
  if (staged_bytes != 0) staging(staged_bytes);
  size_t staged = 0;
  std::vector<TensorPtr> inputs;
  inputs.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const ValueSpec& spec = blob_.inputs[i];
    const ArgumentView& view = inputs_[i];
    if (device_ == kCuda && !scalars[i]) {
      inputs.push_back(bind_on_device(view, spec, &staged));
      continue;
    }
    const StoragePtr storage = scalars[i] ? scalars[i] : borrow_storage(view.data, view.nbytes, kHost, 0);
    inputs.push_back(make_view(storage, view.rank, view.sizes, view.strides, 0, spec.dtype));
  }
  return inputs;
}

Delegate::TensorPtr Delegate::bind_on_device(const ArgumentView& view, const ValueSpec& spec,
                                             size_t* staged) {
  if (view.device == kCuda && reinterpret_cast<uintptr_t>(view.data) % kDeviceAlignment == 0) {
    return make_view(borrow_storage(view.data, view.nbytes, kCuda, device_index_), view.rank, view.sizes,
                     view.strides, 0, spec.dtype);
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
  return make_view(storage, view.rank, view.sizes, view.strides, 0, spec.dtype);
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

void Delegate::publish(const std::vector<TensorPtr>& results,
                       ::executorch::runtime::Span<EValue*> arguments) {
  std::vector<ArgumentView> outputs;
  outputs.reserve(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    check_output(blob_.outputs[i], i, *results[i]);
    sizes_.check_output(i, results[i]->sizes.data());
    outputs.push_back(prepare_output(blob_.outputs[i], i, *arguments[blob_.inputs.size() + i], *results[i]));
    if (outputs[i].device == kCuda && (device_ != kCuda || outputs[i].device_index != device_index_)) {
      fail(ErrorCode::InvalidArgument, "output %zu (%s): the tensor is on cuda:%d, the method runs on %s.", i,
           blob_.outputs[i].name.c_str(), outputs[i].device_index, device_name(device_));
    }
  }
  if (device_ == kCuda) return publish_from_device(results, outputs);
  for (size_t i = 0; i < results.size(); ++i) {
    const Tensor& result = *results[i];
    strided_copy(result.rank, result.sizes.data(), {outputs[i].data, outputs[i].strides, result.dtype},
                 {result.data(), result.strides.data(), result.dtype});
  }
}

void Delegate::publish_from_device(const std::vector<TensorPtr>& results,
                                   const std::vector<ArgumentView>& outputs) {
  size_t total = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const bool through_staging = outputs[i].device == kHost && results[i]->device_type() == kCuda;
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
    if (outputs[i].device == kCuda) {
      const auto target = make_view(borrow_storage(outputs[i].data, outputs[i].nbytes, kCuda, device_index_),
                                    outputs[i].rank, outputs[i].sizes, outputs[i].strides, 0, result.dtype);
      copy_tensor(*target, result);
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
    if (outputs[i].device == kCuda) continue;
    const Tensor& result = *results[i];
    const void* source = fetched[i] != nullptr ? fetched[i] : result.data();
    strided_copy(result.rank, result.sizes.data(), {outputs[i].data, outputs[i].strides, result.dtype},
                 {const_cast<void*>(source), result.strides.data(), result.dtype});
  }
}

}  // namespace etcuda
