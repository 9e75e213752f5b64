// Threads of a block, one after another on one CPU thread: a thread runs until it has to wait for another.

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

// Where threads meet: as many as `count` come before any goes on.
struct Meeting {
  int come = 0;
  unsigned round = 0;
};

class Block {
 public:
  // Runs `body` once for each thread, in an order that `random` decides anew each time round. `between` runs
  // between the threads: what copies and other things that go on by themselves do meanwhile.
  void run(int threads, const std::function<void()>& body, const std::function<void()>& between,
           std::mt19937& random);
  // Of the running thread: lets others run.
  void yield();
  // Lets others run until the condition holds.
  template <typename Condition>
  void until(Condition condition) {
    while (!condition()) yield();
  }
  void meet(Meeting& meeting, int count);

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
