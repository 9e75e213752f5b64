// The CUDA graphs of one delegate, by what they depend on.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/capture.h"
#include "memory/graph_pool.h"
#include "memory/reclaim.h"
#include "memory/tensor.h"
#include "session/session_state.h"

namespace etcuda {

// All that a recorded call depends on but the bytes of its tensors: the session, sizes, numbers, and
// addresses of tensors on the GPU.
using GraphKey = std::vector<int64_t>;
// Its first entries: a session's id and version, or zeros.
constexpr size_t kSession = 0;
constexpr size_t kSessionVersion = 1;

// A recorded call: copies from the staging buffer to the GPU, the method, copies to where its outputs go.
struct CapturedCall {
  struct Result {
    Tensor layout;                  // without a storage
    const void* fetched = nullptr;  // on the host after a launch
    bool is_in_place = false;       // the graph writes the output itself: one on the GPU, or pinned
    std::array<int64_t, kMaxTensorRank> strides{};  // of such an output
  };
  static constexpr size_t kNotStaged = SIZE_MAX;

  CapturedCall();
  ~CapturedCall();
  CapturedCall(const CapturedCall&) = delete;
  CapturedCall& operator=(const CapturedCall&) = delete;

  GraphExec exec;
  size_t pool_bytes = 0;  // that it uses of the cache's pools
  size_t staging_bytes = 0;
  char* input_staging = nullptr;         // of the cache's staging pool
  std::vector<size_t> input_slots;       // offsets in input_staging, or kNotStaged
  std::vector<Result> results;           // fetched into the staging pool, or found in
  std::vector<StoragePtr> host_results;  // what the host computed, which depends on the key alone
};

class GraphCache final : public MemoryHolder {
 public:
  struct Entry {
    GraphKey key;
    std::unique_ptr<CapturedCall> graph;  // null: not recorded
    uint32_t num_calls = 0;               // without a graph
    bool is_refused = false;
    uint64_t last_call = 0;  // counted
    std::weak_ptr<SessionState> session;
    bool has_session = false;
  };

  // `users`: held by whoever uses the graphs.
  GraphCache(int device, std::mutex& users) : device_(device), users_(users) {}
  ~GraphCache() override;

  // The entry of that key, which is made if there is none. Valid until the next call of a function here.
  Entry& find(const GraphKey& key);
  // Whether a call with this entry is to be recorded now.
  bool is_due(const Entry& entry) const;
  // Before one more graph is recorded: those whose session is gone go, and the least recently used if there
  // are many. False if all of those are in use, as with more sessions in turn than there may be graphs.
  // `entry` stays.
  bool make_room(const Entry& entry);
  // After a graph is recorded. Where the pools hold much more than the largest graph needs, which this one
  // is, the other graphs go: recorded again, they make do with its memory.
  void settle(Entry& entry);
  // No more graphs for this key.
  void refuse(Entry& entry);
  // Drops every graph, and with them their memory.
  void clear();
  // The same where memory is short. The keys are kept, and their graphs made again, but not often.
  bool release_memory(int device) noexcept override;

  bool is_empty() const { return entries_.empty(); }
  // Keys in a row that were not there.
  uint32_t num_misses() const { return num_misses_; }
  const std::shared_ptr<GraphPool>& pool();
  // Pinned memory, in use only while a call is in progress, so that all graphs share it.
  const std::shared_ptr<GraphPool>& staging();

 private:
  size_t num_graphs() const;
  void drop_graphs(const Entry* but);
  void drop_unused_pools();

  const int device_;
  std::mutex& users_;
  std::shared_ptr<GraphPool> pool_;
  std::shared_ptr<GraphPool> staging_;
  std::vector<std::unique_ptr<Entry>> entries_;  // the one used last is first
  uint64_t num_calls_ = 0;
  uint32_t num_misses_ = 0;
  uint32_t num_refusals_ = 0;
};

// While one lives, this thread has the lock of that cache's users.
class GraphUse {
 public:
  explicit GraphUse(const GraphCache* cache);
  ~GraphUse();
  GraphUse(const GraphUse&) = delete;
  GraphUse& operator=(const GraphUse&) = delete;

 private:
  const GraphCache* previous_;
};

}  // namespace etcuda
