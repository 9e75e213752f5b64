#include "weights/verify.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <system_error>

#include "core/failure.h"

namespace etcuda {
namespace {

// As many as keep up with the fastest storage; more would take the processor from others.
constexpr size_t kMaxHelpers = 8;
// Starting a thread takes as long as hashing some tens of kilobytes.
constexpr size_t kBytesPerHelper = size_t{8} << 20;
// Bytes in memory that wait at most.
constexpr size_t kRoom = size_t{256} << 20;
// Blocks between two looks at what else there is to do.
constexpr size_t kStep = (size_t{1} << 20) / Sha256::kBlock;

// 1 or 0; -1: not set.
std::atomic<int> chosen{-1};

size_t processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<size_t>(CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

bool verify_weights() {
  if (const int now = chosen.load(); now >= 0) return now == 1;
  const char* text = std::getenv("ETCUDA_VERIFY_WEIGHTS");
  if (text == nullptr || std::strcmp(text, "1") == 0) return true;
  if (std::strcmp(text, "0") == 0) return false;
  fail(ErrorCode::InvalidArgument,
       "the environment variable ETCUDA_VERIFY_WEIGHTS: expected 0 or 1, got '%s'. Correct or unset it.",
       text);
}

void set_verify_weights(bool enabled) noexcept {
  chosen.store(enabled ? 1 : 0);
}

struct WeightChecker::Lane {
  Job* job = nullptr;
  std::optional<Sha256> hash;

  void start(Job* taken) {
    job = taken;
    if (job != nullptr) hash.emplace(job->check.data, job->check.nbytes);
  }
  size_t step() const { return std::min(hash->blocks_left(), kStep); }
};

WeightChecker::WeightChecker() : max_helpers_(std::min(kMaxHelpers, processors() - 1)) {}

WeightChecker::~WeightChecker() {
  is_given_up_ = true;
  join();
}

void WeightChecker::add(WeightCheck check) {
  size_t waiting = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t nbytes = check.nbytes;
    jobs_.push_back({std::move(check)});
    waiting_bytes_ += nbytes;
    pending_bytes_ += nbytes;
    waiting = waiting_bytes_;
  }
  changed_.notify_all();
  if (helpers_.size() < max_helpers_ && waiting > helpers_.size() * kBytesPerHelper + kBytesPerHelper)
    start_helper();
}

void WeightChecker::start_helper() {
  try {
    helpers_.emplace_back([this] { hash_waiting(true); });
  } catch (const std::system_error&) {
    // No more threads are to be had: this one hashes, in make_room() and finish().
    max_helpers_ = helpers_.size();
  }
}

void WeightChecker::make_room() {
  release_done();
  std::unique_lock<std::mutex> lock(mutex_);
  while (pending_bytes_ > kRoom) {
    if (next_ < jobs_.size()) {
      lock.unlock();
      hash_waiting(false);
      lock.lock();
    } else {
      changed_.wait(lock);
    }
  }
  lock.unlock();
  release_done();
}

void WeightChecker::finish() {
  hash_waiting(false);
  join();
  std::string text;
  size_t more = 0;
  for (const Job& job : jobs_) {
    if (job.got == job.check.expected) continue;
    if (!text.empty()) {
      ++more;
    } else {
      text = format("the bytes of %s are damaged: expected SHA-256 %s, got %s", job.check.name.c_str(),
                    shortened(job.check.expected).c_str(), shortened(job.got).c_str());
    }
  }
  jobs_.clear();
  if (text.empty()) return;
  if (more != 0) text += format("; %zu more weights are damaged too", more);
  fail(ErrorCode::InvalidExternalData,
       "%s. Copy the .pte file, and its .ptd file if it has one, again, or export the model again.",
       text.c_str());
}

// Two at a time; a helper until finish(), others until nothing waits.
void WeightChecker::hash_waiting(bool is_helper) noexcept {
  Lane lanes[2];
  while (!is_given_up_) {
    for (Lane& lane : lanes) {
      const bool is_idle = lanes[0].job == nullptr && lanes[1].job == nullptr;
      if (lane.job == nullptr) lane.start(take(is_helper && is_idle));
    }
    const bool both = lanes[0].job != nullptr && lanes[1].job != nullptr;
    if (both) {
      Sha256::advance_both(*lanes[0].hash, *lanes[1].hash, std::min(lanes[0].step(), lanes[1].step()));
    } else {
      Lane& only = lanes[0].job != nullptr ? lanes[0] : lanes[1];
      if (only.job == nullptr) return;
      only.hash->advance(only.step());
    }
    for (Lane& lane : lanes) {
      if (lane.job == nullptr || lane.hash->blocks_left() != 0) continue;
      complete(*lane.job, lane.hash->finish());
      lane.job = nullptr;
    }
  }
}

WeightChecker::Job* WeightChecker::take(bool wait) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  while (wait && next_ == jobs_.size() && !is_closed_) changed_.wait(lock);
  if (next_ == jobs_.size()) return nullptr;
  Job& job = jobs_[next_++];
  waiting_bytes_ -= job.check.nbytes;
  return &job;
}

void WeightChecker::complete(Job& job, const Digest& got) noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job.got = got;
    job.is_done = true;
    pending_bytes_ -= job.check.nbytes;
  }
  changed_.notify_all();
}

void WeightChecker::release_done() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Job& job : jobs_) {
    if (job.is_done) job.check.owner.reset();
  }
}

void WeightChecker::join() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
  }
  changed_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
  helpers_.clear();
}

}  // namespace etcuda
