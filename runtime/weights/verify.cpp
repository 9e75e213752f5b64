#include "weights/verify.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/failure.h"

namespace etcuda {
namespace {

// As many as keep up with a GPU's bus; more would take the processor from others.
constexpr size_t kMaxHelpers = 15;
// Starting a thread takes as long as hashing some tens of kilobytes.
constexpr size_t kBytesPerHelper = size_t{8} << 20;
// Blocks between two looks at what else there is to do.
constexpr size_t kStep = Uploader::kSlotBytes / Sha256::kBlock;

// Not worth a system call to ask where it lies.
constexpr size_t kFewBytes = size_t{1} << 20;

// 1 or 0; -1: not set.
std::atomic<int> chosen{-1};

size_t processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<size_t>(CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

// Whether memory is a file's pages, as the kernel says of each page that is there (its documentation,
// admin-guide/mm/pagemap). False if it does not say.
bool is_mapped_file(const void* data) {
  const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  static_cast<void>(*static_cast<const volatile char*>(data));
  constexpr uint64_t kIsThere = uint64_t{1} << 63, kIsOfFile = uint64_t{1} << 61;
  uint64_t entry = 0;
  const auto page = reinterpret_cast<uintptr_t>(data) / static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto got = pread(file, &entry, sizeof(entry), static_cast<off_t>(page * sizeof(entry)));
  close(file);
  return got == sizeof(entry) && (entry & kIsThere) != 0 && (entry & kIsOfFile) != 0;
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

// A weight under way: so many of its bytes are copied and hashed.
struct WeightChecker::Lane {
  Job* job = nullptr;
  std::optional<Sha256> hash;
  size_t done = 0;

  size_t left() const { return job->check.nbytes - done; }
  size_t blocks() const { return std::min(left() / Sha256::kBlock, kStep); }
  // Copies the next bytes, which are then in the processor's cache.
  void copy(size_t nbytes, std::optional<Uploader>& uploader) {
    const WeightCheck& check = job->check;
    if (check.destination != nullptr && nbytes != 0)
      uploader->upload(static_cast<char*>(check.destination) + done,
                       static_cast<const char*>(check.data) + done, nbytes);
    done += nbytes;
  }
};

WeightChecker::WeightChecker(Stream* stream, size_t room)
    : stream_(stream), room_(room), max_helpers_(std::min(kMaxHelpers, processors() - 1)) {}

WeightChecker::~WeightChecker() {
  give_up();
}

void WeightChecker::give_up() noexcept {
  is_given_up_ = true;
  join();
}

void WeightChecker::add(WeightCheck check) {
  size_t waiting = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t nbytes = check.nbytes;
    jobs_.push_back({std::move(check), nbytes});
    waiting_bytes_ += nbytes;
    waiting = waiting_bytes_;
  }
  changed_.notify_all();
  if (helpers_.size() < max_helpers_ && waiting > helpers_.size() * kBytesPerHelper + kBytesPerHelper)
    start_helper();
}

void WeightChecker::start_helper() {
  try {
    helpers_.emplace_back([this] { work(true); });
  } catch (const std::system_error&) {
    // No more threads are to be had: this one works, in make_room() and finish().
    max_helpers_ = helpers_.size();
  }
}

void WeightChecker::make_room() {
  release_done();
  std::unique_lock<std::mutex> lock(mutex_);
  while (waiting_bytes_ + under_way_bytes_ > room_ && !is_given_up_) {
    const size_t before = next_;
    if (before < jobs_.size()) {
      lock.unlock();
      work(false);
      lock.lock();
    }
    // Nothing that waits may be taken now.
    if (next_ == before) changed_.wait(lock);
  }
  lock.unlock();
  release_done();
}

void WeightChecker::finish() {
  work(false);
  join();
  if (error_ != nullptr) std::rethrow_exception(error_);
  const Job* first = nullptr;
  size_t damaged = 0;
  for (const Job& job : jobs_) {
    if (!job.check.expected || job.got == *job.check.expected) continue;
    ++damaged;
    if (first == nullptr || job.check.place < first->check.place) first = &job;
  }
  std::string text;
  if (first != nullptr) {
    text = format("the bytes of %s are damaged: expected SHA-256 %s, got %s", first->check.name.c_str(),
                  shortened(*first->check.expected).c_str(), shortened(first->got).c_str());
  }
  jobs_.clear();
  if (text.empty()) return;
  if (const size_t more = damaged - 1; more != 0) text += format("; %zu more weights are damaged too", more);
  fail(ErrorCode::InvalidExternalData,
       "%s. Copy the .pte file, and its .ptd file if it has one, again, or export the model again.",
       text.c_str());
}

// Two at a time; a helper until finish(), others until nothing waits.
void WeightChecker::work(bool is_helper) noexcept {
  try {
    std::optional<Uploader> uploader;
    Lane lanes[2];
    while (!is_given_up_) {
      for (Lane& lane : lanes) {
        const bool is_idle = lanes[0].job == nullptr && lanes[1].job == nullptr;
        if (lane.job == nullptr) start(lane, is_helper && is_idle, uploader);
      }
      if (lanes[0].job == nullptr && lanes[1].job == nullptr) return;
      advance(lanes, uploader);
    }
  } catch (...) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error_ == nullptr) error_ = std::current_exception();
      is_given_up_ = true;
    }
    changed_.notify_all();
  }
}

void WeightChecker::start(Lane& lane, bool wait, std::optional<Uploader>& uploader) {
  lane.job = take(wait);
  if (lane.job == nullptr) return;
  WeightCheck& check = lane.job->check;
  // It makes the device current, too.
  if (stream_ != nullptr && !uploader) uploader.emplace(*stream_);
  if (check.fetch) check.fetch(check);
  if (check.fetch && check.nbytes >= kFewBytes && is_mapped_file(check.data)) give_back_room(*lane.job);
  lane.done = 0;
  lane.hash.reset();
  if (check.expected) lane.hash.emplace(check.data, check.nbytes);
}

void WeightChecker::advance(Lane (&lanes)[2], std::optional<Uploader>& uploader) {
  if (lanes[0].hash && lanes[1].hash && lanes[0].job != nullptr && lanes[1].job != nullptr) {
    const size_t blocks = std::min(lanes[0].blocks(), lanes[1].blocks());
    for (Lane& lane : lanes) lane.copy(blocks * Sha256::kBlock, uploader);
    Sha256::advance_both(*lanes[0].hash, *lanes[1].hash, blocks);
  } else {
    for (Lane& lane : lanes) {
      if (lane.job == nullptr) continue;
      const size_t blocks = lane.blocks();
      lane.copy(blocks * Sha256::kBlock, uploader);
      if (lane.hash) lane.hash->advance(blocks);
    }
  }
  for (Lane& lane : lanes) {
    if (lane.job == nullptr || lane.left() >= Sha256::kBlock) continue;
    lane.copy(lane.left(), uploader);
    complete(*lane.job, lane.hash ? lane.hash->finish() : Digest{});
    lane.job = nullptr;
  }
}

// Null if nothing waits, or nothing for which there is room; a helper that has nothing to do may wait for it.
WeightChecker::Job* WeightChecker::take(bool wait) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_given_up_) {
    if (next_ < jobs_.size()) {
      const WeightCheck& check = jobs_[next_].check;
      // What is in memory already takes no more room when it is under way.
      if (!check.fetch || under_way_bytes_ == 0 || under_way_bytes_ + check.nbytes <= room_) {
        waiting_bytes_ -= check.nbytes;
        under_way_bytes_ += check.nbytes;
        return &jobs_[next_++];
      }
    } else if (is_closed_) {
      return nullptr;
    }
    if (!wait) return nullptr;
    changed_.wait(lock);
  }
  return nullptr;
}

void WeightChecker::complete(Job& job, const Digest& got) noexcept {
  if (job.check.fetch) job.check.owner.reset();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job.got = got;
    job.is_done = true;
  }
  give_back_room(job);
}

void WeightChecker::give_back_room(Job& job) noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    under_way_bytes_ -= std::exchange(job.room, 0);
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
