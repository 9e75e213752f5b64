// The threads of a block on one CPU thread: each runs until it has to wait for another one.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
extern Index threadIdx, blockIdx, gridDim;

namespace emulator {

// A point at which threads wait until a number of them has arrived.
struct SyncPoint {
  int arrived = 0;
  unsigned round = 0;
};

class Block {
 public:
  // Runs `body` once for each thread. In each round, every thread that has not ended runs until it waits, in
  // an order that `random` decides. `between` runs after each: it makes progress with what needs no thread,
  // such as copies.
  void run(int threads, const std::function<void()>& body, const std::function<void()>& between,
           std::mt19937& random);
  // The running thread lets others run.
  void yield();
  // The running thread lets others run until the condition holds.
  template <typename Condition>
  void until(Condition condition) {
    while (!condition()) yield();
  }
  // The running thread waits at a point until `count` threads have arrived.
  void sync(SyncPoint& point, int count);

 private:
  struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
  };
  static void start();

  std::vector<Thread> threads_;
  ucontext_t scheduler_;
  const std::function<void()>* body_ = nullptr;
  int running_ = 0;
};

extern Block block;

// Says what went wrong, and ends the process: a test runs it in one of its own.
[[noreturn]] void fail(const char* what);

}  // namespace emulator
