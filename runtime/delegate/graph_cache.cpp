#include "delegate/graph_cache.h"

#include <algorithm>

#include "cuda/graph_settings.h"

namespace etcuda {
namespace {

// Calls without a graph before one is recorded: the first loads kernels and chooses algorithms.
constexpr uint32_t kWarmCalls = 2;
constexpr size_t kMaxGraphs = 32;
// Calls without it after which a graph may go for another one.
constexpr uint64_t kIdleCalls = 4 * kMaxGraphs;
// Keys that are remembered, with a graph or without.
constexpr size_t kMaxEntries = 4 * kMaxGraphs;
// A method that cannot be recorded for so many keys is not tried with others.
constexpr uint32_t kMaxRefusals = 8;
// What pools may hold beyond twice what is needed.
constexpr size_t kSlack = size_t{1} << 20;

thread_local const GraphCache* used_cache = nullptr;

}  // namespace

CapturedCall::CapturedCall() {
  ++graph_counts().live;
}

CapturedCall::~CapturedCall() {
  --graph_counts().live;
}

GraphCache::~GraphCache() {
  retire();
  clear();
}

GraphCache::Entry& GraphCache::find(const GraphKey& key) {
  ++num_calls_;
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry->key == key; });
  if (found != entries_.end()) {
    num_misses_ = 0;
    std::rotate(entries_.begin(), found, found + 1);
    entries_.front()->last_call = num_calls_;
    return *entries_.front();
  }
  ++num_misses_;
  if (entries_.size() == kMaxEntries) {
    entries_.pop_back();
    drop_unused_pools();
  }
  auto entry = std::make_unique<Entry>();
  entry->key = key;
  entry->last_call = num_calls_;
  entries_.insert(entries_.begin(), std::move(entry));
  return *entries_.front();
}

bool GraphCache::is_due(const Entry& entry) const {
  return entry.graph == nullptr && !entry.is_refused && entry.num_calls >= kWarmCalls &&
         num_refusals_ < kMaxRefusals;
}

bool GraphCache::make_room(const Entry& entry) {
  const auto is_orphan = [&](const auto& each) {
    if (each.get() == &entry || !each->has_session) return false;
    const bool has_other_buffers = each->key[kSession] == entry.key[kSession] &&
                                   each->key[kSessionVersion] != entry.key[kSessionVersion];
    return has_other_buffers || each->session.expired();
  };
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(), is_orphan), entries_.end());
  bool has_room = num_graphs() < kMaxGraphs;
  if (!has_room) {
    const auto oldest = std::find_if(entries_.rbegin(), entries_.rend(),
                                     [](const auto& each) { return each->graph != nullptr; });
    has_room = num_calls_ - (*oldest)->last_call >= kIdleCalls;
    if (has_room) entries_.erase(std::next(oldest).base());
  }
  drop_unused_pools();
  return has_room;
}

void GraphCache::settle(Entry& entry) {
  CapturedCall& made = *entry.graph;
  made.pool_bytes = pool_->used();
  made.staging_bytes = staging_->used();
  const auto wastes = [&](const GraphPool& pool, size_t CapturedCall::* nbytes) {
    const size_t needed = made.*nbytes;
    const bool is_largest = std::all_of(entries_.begin(), entries_.end(), [&](const auto& each) {
      return each->graph == nullptr || (*each->graph).*nbytes <= needed;
    });
    return is_largest && pool.reserved() > 2 * needed + kSlack;
  };
  if (!wastes(*pool_, &CapturedCall::pool_bytes) && !wastes(*staging_, &CapturedCall::staging_bytes)) return;
  drop_graphs(&entry);
  pool_->trim();
  staging_->trim();
}

void GraphCache::drop_graphs(const Entry* but) {
  for (const auto& entry : entries_) {
    if (entry.get() == but || entry->graph == nullptr) continue;
    entry->graph.reset();
    entry->num_calls = 0;
  }
}

void GraphCache::refuse(Entry& entry) {
  entry.is_refused = true;
  ++num_refusals_;
  entry.graph.reset();
  drop_unused_pools();
}

void GraphCache::clear() {
  entries_.clear();
  drop_unused_pools();
}

bool GraphCache::release_memory(int device) noexcept {
  if (device != device_) return false;
  std::unique_lock<std::mutex> lock;
  if (used_cache != this) {
    lock = std::unique_lock<std::mutex>(users_, std::try_to_lock);
    if (!lock) return false;
  }
  if (pool_ == nullptr) return false;
  drop_graphs(nullptr);
  drop_unused_pools();
  ++num_refusals_;
  return true;
}

GraphUse::GraphUse(const GraphCache* cache) : previous_(used_cache) {
  used_cache = cache;
}

GraphUse::~GraphUse() {
  used_cache = previous_;
}

size_t GraphCache::num_graphs() const {
  return static_cast<size_t>(std::count_if(entries_.begin(), entries_.end(),
                                           [](const auto& each) { return each->graph != nullptr; }));
}

void GraphCache::drop_unused_pools() {
  if (num_graphs() != 0) return;
  pool_.reset();
  staging_.reset();
}

const std::shared_ptr<GraphPool>& GraphCache::staging() {
  if (staging_ == nullptr) staging_ = std::make_shared<GraphPool>();
  return staging_;
}

const std::shared_ptr<GraphPool>& GraphCache::pool() {
  if (pool_ == nullptr) pool_ = std::make_shared<GraphPool>(device_);
  return pool_;
}

}  // namespace etcuda
