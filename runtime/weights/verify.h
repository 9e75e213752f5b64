// Compares the bytes of weights with the digests that the program holds for them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/sha256.h"

namespace etcuda {

// Whether weights are compared when they are loaded: as set, else as the environment variable
// ETCUDA_VERIFY_WEIGHTS says, else true. Throws Failure if that is neither 0 nor 1.
bool verify_weights();
void set_verify_weights(bool enabled) noexcept;

struct WeightCheck {
  std::string name;  // for messages
  Digest expected;
  const void* data;
  size_t nbytes;
  std::shared_ptr<const void> owner;  // of the data; released by the thread that uses the WeightChecker
};

// Hashes on threads of its own while its user copies. To be used by one thread.
class WeightChecker {
 public:
  WeightChecker();
  // Gives up what is not hashed yet.
  ~WeightChecker();
  WeightChecker(const WeightChecker&) = delete;
  WeightChecker& operator=(const WeightChecker&) = delete;

  void add(WeightCheck check);
  // Hashes too, until what is not hashed is little enough: buffers in memory must not pile up.
  void make_room();
  // Hashes what is left and waits for the threads. Throws Failure with the weights that are not what they
  // should be.
  void finish();

 private:
  struct Job {
    WeightCheck check;
    Digest got{};
    bool is_done = false;
  };
  struct Lane;

  void hash_waiting(bool is_helper) noexcept;
  Job* take(bool wait) noexcept;
  void complete(Job& job, const Digest& got) noexcept;
  void release_done();
  void start_helper();
  void join() noexcept;

  size_t max_helpers_;
  std::vector<std::thread> helpers_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  size_t next_ = 0;  // of jobs_, the first that nobody has taken
  size_t waiting_bytes_ = 0;
  size_t pending_bytes_ = 0;  // waiting, or being hashed
  bool is_closed_ = false;
  std::atomic<bool> is_given_up_{false};
};

}  // namespace etcuda
