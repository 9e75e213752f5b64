// One loaded delegate: an image, its constants and state, and the stream it runs on.
#pragma once

#include <executorch/runtime/core/span.h>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "blob/blob.h"
#include "cuda/stream.h"
#include "delegate/graph_cache.h"
#include "delegate/sizes.h"
#include "delegate/values.h"
#include "image/image.h"
#include "session/session_state.h"
#include "weights/pool.h"

namespace etcuda {

class Delegate {
 public:
  // Reads the blob of `nbytes` bytes, which may be freed afterwards. Throws Failure.
  Delegate(const void* data, size_t nbytes, const NamedDataMap* map, int cuda_device);
  ~Delegate();
  Delegate(const Delegate&) = delete;
  Delegate& operator=(const Delegate&) = delete;

  // `arguments`: the inputs, then the outputs. Uses the state of this thread's current session. Calls from
  // several threads take turns. Throws Failure; the delegate stays usable.
  void execute(::executorch::runtime::Span<EValue*> arguments);

 private:
  using TensorPtr = std::unique_ptr<Tensor>;

  // Code that is called as one: the whole delegate's, or that of one part of it.
  struct Part {
    std::unique_ptr<CodeImage> image;
    ContainerHandle container = nullptr;
  };

  void load_part(const ImageSpec& image);
  void destroy_parts();
  void check_arity(const Part& part, size_t num_inputs, size_t num_outputs);
  void check_steps();
  void check_constants();
  void check_constant(const ConstantSpec& constant, size_t index);
  void bind_constants();
  TensorPtr view_constant(const ConstantSpec& constant, StoragePtr storage) const;
  void bind_state(SessionState* session);
  void bind_storages(const std::vector<StoragePtr>& storages);
  void call(::executorch::runtime::Span<EValue*> passed, const std::shared_ptr<SessionState>& session);
  void check_inputs();
  // Whether input `index` of this call is a number, which is in numbers_.
  bool is_number(size_t index) const { return inputs_[index].data == &numbers_[index]; }
  std::vector<TensorPtr> bind_inputs();
  TensorPtr bind_input(size_t index, size_t* staged);
  std::vector<TensorPtr> run(std::vector<TensorPtr> inputs);
  std::vector<TensorPtr> run_part(const Part& part, std::vector<TensorPtr> inputs, size_t num_outputs);
  std::vector<TensorPtr> run_steps(std::vector<TensorPtr> inputs);
  TensorPtr aligned(TensorPtr value);
  void prepare_outputs(const std::vector<TensorPtr>& results);
  TensorPtr device_target(size_t index, const Tensor& result) const;
  void publish(const std::vector<TensorPtr>& results);
  void publish_from_device(const std::vector<TensorPtr>& results);
  char* staging(size_t nbytes);
  [[noreturn]] void fail_from_image(const Part& part, const char* what, ErrorCode code);

  // CUDA graphs. The entry of the call in progress; null: there are to be none.
  GraphCache::Entry* graph_entry(const std::shared_ptr<SessionState>& session);
  // After the call in progress has run.
  void capture_if_due(GraphCache::Entry& entry, const std::shared_ptr<SessionState>& session);
  std::unique_ptr<CapturedCall> capture();
  std::vector<TensorPtr> capture_inputs(const CapturedCall& call, size_t staged_bytes);
  void capture_outputs(CapturedCall& call, const std::vector<TensorPtr>& results,
                       std::vector<StoragePtr>* staging);
  bool replay(GraphCache::Entry& entry);
  void explain(const char* reason);

  BlobSpec blob_;
  DeviceType device_ = kHost;
  int device_index_ = 0;

  // In the order in which they may go: the parts first, the stream last.
  std::unique_ptr<Stream> stream_;
  StoragePtr staging_;
  LoadedStorages loaded_;
  std::vector<TensorPtr> constants_;
  // Replaced by others, and kept until the image has taken those.
  std::vector<TensorPtr> replaced_;
  ModuleList modules_;
  std::vector<Part> parts_;
  std::vector<uint32_t> last_step_;  // with steps: for each value, the last one that reads it

  // Whose state the image has: a session's id and version, or zeros for the stock state.
  struct Bound {
    uint64_t session = 0;
    uint64_t version = 0;
  };
  std::optional<Bound> bound_ = Bound{};  // none: an attempt to change it failed

  std::mutex mutex_;  // held during a call
  // Behind the lock of its users and what its graphs launch, so that it goes first. Null: not on a GPU, or
  // the driver is too old.
  std::unique_ptr<GraphCache> graphs_;
  bool has_explained_ = false;  // why a call is not captured
  // Of the call in progress.
  CallSizes sizes_;
  std::vector<ArgumentView> inputs_;
  std::vector<ArgumentView> outputs_;
  std::vector<int64_t> numbers_;    // inputs that are no tensors, in their dtype
  std::vector<EValue*> arguments_;  // without the ignored ones
  GraphKey key_;
  std::vector<bool> are_pinned_;  // outputs on the host that a graph may write to
};

}  // namespace etcuda
