#include "threads.h"

Index threadIdx, blockIdx, gridDim;

namespace emulator {

Block block;

namespace {
constexpr size_t kStackBytes = 128 << 10;
constexpr int kMaxRounds = 1 << 22;  // then the threads wait for each other
constexpr unsigned kSlower = 4;
}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "block (%u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x, what);
  std::exit(3);
}

void Block::start() {
  (*block.body_)();
  block.threads_[block.running_].done = true;
}

void Block::run(int threads, const std::function<void()>& body, const std::function<void()>& between,
                std::mt19937& random) {
  body_ = &body;
  threads_.clear();
  threads_.resize(threads);
  std::vector<int> order;
  for (int i = 0; i < threads; i++) {
    Thread& thread = threads_[i];
    thread.stack = std::make_unique<char[]>(kStackBytes);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = &scheduler_;
    makecontext(&thread.context, start, 0);
    order.push_back(i);
  }
  // One warp is much slower than the others.
  const int slow = random() % ((threads + 31) / 32);
  for (int round = 0; !order.empty(); round++) {
    if (round == kMaxRounds) fail("expected an end, but all threads wait");
    std::shuffle(order.begin(), order.end(), random);
    const bool rests = random() % kSlower != 0;
    for (int index : order) {
      if (rests && index / 32 == slow) continue;
      running_ = index;
      threadIdx.x = index;
      swapcontext(&scheduler_, &threads_[index].context);
      between();
    }
    order.erase(std::remove_if(order.begin(), order.end(), [this](int i) { return threads_[i].done; }),
                order.end());
  }
}

void Block::yield() {
  const int index = running_;
  swapcontext(&threads_[index].context, &scheduler_);
}

void Block::sync(SyncPoint& point, int count) {
  const unsigned round = point.round;
  if (++point.arrived == count) {
    point.arrived = 0;
    point.round++;
    return;
  }
  until([&] { return point.round != round; });
}

}  // namespace emulator
