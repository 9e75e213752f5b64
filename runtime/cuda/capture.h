// What one thread issues on a stream, recorded as a CUDA graph and launched as a whole later.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "cuda/stream.h"
#include "memory/graph_pool.h"

namespace etcuda {

// A recorded graph that can be launched.
class GraphExec {
 public:
  GraphExec() = default;
  explicit GraphExec(CUgraphExec handle) : handle_(handle) {}
  ~GraphExec();
  GraphExec(GraphExec&& other) noexcept;
  GraphExec& operator=(GraphExec&& other) noexcept;

  CUresult launch(CUstream stream) const;

 private:
  CUgraphExec handle_ = nullptr;
};

// While one lives, this thread's work on the stream is recorded and not run, and what it allocates on the
// device comes from the pool. One at a time in the process.
class Capture {
 public:
  // Throws Failure.
  Capture(Stream& stream, std::shared_ptr<GraphPool> pool);
  // Discards what finish() has not taken.
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // Throws Failure, with the words of refuse_in_capture() if there are any.
  GraphExec finish();

  // Whether the driver has what is needed.
  static bool is_supported();

 private:
  CUgraph end() noexcept;

  std::unique_lock<std::mutex> turn_;
  Stream& stream_;
  PoolScope pool_;
  bool is_open_ = false;
};

bool is_capturing();
// What refuse_in_capture() said in this thread's last capture, once; empty if nothing did.
std::string take_capture_refusal();
// Throws Failure(NotSupported) if this thread captures; `what` begins the sentence, "... cannot be part of a
// CUDA graph". The capture then fails even if compiled code does not mind.
void refuse_in_capture(const char* what);

// While it is held, no thread captures. The driver refuses to wait for a whole device during a capture, and
// spoils the capture. Not to be taken by a thread that captures, nor under a lock that one takes.
std::unique_lock<std::mutex> exclude_captures();

}  // namespace etcuda
