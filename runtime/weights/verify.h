// Brings weights to the GPU and compares their bytes with the digests that the program holds for them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/sha256.h"
#include "weights/upload.h"

namespace etcuda {

// Whether weights are compared when they are loaded: as set, else as the environment variable
// ETCUDA_VERIFY_WEIGHTS says, else true. Throws Failure if that is neither 0 nor 1.
bool verify_weights();
void set_verify_weights(bool enabled) noexcept;

struct WeightCheck {
  std::string name;                // for messages
  std::optional<Digest> expected;  // none: not compared
  const void* data;
  size_t nbytes;
  std::shared_ptr<const void> owner;  // of the data; released by the thread that uses the WeightChecker
  void* destination = nullptr;        // on the GPU, where the bytes are copied; none: nowhere
  // If set, called first, by the thread that does the work: fills in data, owner and destination. That thread
  // releases the owner then.
  std::function<void(WeightCheck&)> fetch;
  size_t place = 0;  // of several that are damaged the one with the least is named
};

// Copies bytes to the GPU and hashes them, each byte once through the processor, on threads of its own. To be
// used by one thread.
class WeightChecker {
 public:
  // Bytes that are in memory at most, and one weight more. Pages of a file that is mapped do not count: the
  // system has them anyway, and may drop them.
  static constexpr size_t kRoom = size_t{256} << 20;

  // `stream`: for the copies; null if there are none.
  explicit WeightChecker(Stream* stream = nullptr, size_t room = kRoom);
  // Gives up.
  ~WeightChecker();
  WeightChecker(const WeightChecker&) = delete;
  WeightChecker& operator=(const WeightChecker&) = delete;

  void add(WeightCheck check);
  // Works too, until what is left is little enough: buffers in memory must not pile up. Not needed for what
  // is yet to be fetched.
  void make_room();
  // Works off what is left and waits for the threads; copies may still be under way on the stream. Throws
  // Failure with the weights that are not what they should be, or with what went wrong while copying.
  void finish();
  // Leaves what is left and waits for the threads.
  void give_up() noexcept;

 private:
  struct Job {
    WeightCheck check;
    size_t room = 0;  // that it takes while it is under way
    Digest got{};
    bool is_done = false;
  };
  struct Lane;

  void work(bool is_helper) noexcept;
  void start(Lane& lane, bool wait, std::optional<Uploader>& uploader);
  void advance(Lane (&lanes)[2], std::optional<Uploader>& uploader);
  Job* take(bool wait) noexcept;
  void give_back_room(Job& job) noexcept;
  void complete(Job& job, const Digest& got) noexcept;
  void release_done();
  void start_helper();
  void join() noexcept;

  Stream* const stream_;
  const size_t room_;
  size_t max_helpers_;
  std::vector<std::thread> helpers_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  size_t next_ = 0;  // of jobs_, the first that nobody has taken
  size_t waiting_bytes_ = 0;
  size_t under_way_bytes_ = 0;
  bool is_closed_ = false;
  std::exception_ptr error_;  // the first
  std::atomic<bool> is_given_up_{false};
};

}  // namespace etcuda
