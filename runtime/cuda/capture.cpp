#include "cuda/capture.h"

#include <utility>

#include "core/failure.h"

namespace etcuda {
namespace {

struct ThreadCapture {
  bool is_open = false;
  std::string refusal;
};
thread_local ThreadCapture thread_capture;

std::mutex& turns() {
  static auto* mutex = new std::mutex();
  return *mutex;
}

void destroy_graph(CUgraph graph) noexcept {
  if (graph == nullptr) return;
  const Driver* driver = Driver::get();
  const CUresult result = driver->cuGraphDestroy(graph);
  if (result != kCudaSuccess) report_error("cuGraphDestroy failed with " + driver->describe(result));
}

}  // namespace

GraphExec::~GraphExec() {
  if (handle_ == nullptr) return;
  const Driver* driver = Driver::get();
  const CUresult result = driver->cuGraphExecDestroy(handle_);
  if (result != kCudaSuccess) report_error("cuGraphExecDestroy failed with " + driver->describe(result));
}

GraphExec::GraphExec(GraphExec&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

GraphExec& GraphExec::operator=(GraphExec&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

CUresult GraphExec::launch(CUstream stream) const {
  return Driver::get()->cuGraphLaunch(handle_, stream);
}

bool Capture::is_supported() {
  const Driver& driver = Driver::require("a CUDA graph");
  return driver.cuStreamBeginCapture_v2 != nullptr && driver.cuStreamEndCapture != nullptr &&
         driver.cuGraphInstantiateWithFlags != nullptr && driver.cuGraphLaunch != nullptr &&
         driver.cuGraphExecDestroy != nullptr && driver.cuGraphDestroy != nullptr;
}

Capture::Capture(Stream& stream, std::shared_ptr<GraphPool> pool)
    : turn_(exclude_captures()), stream_(stream), pool_(std::move(pool)) {
  const Driver& driver = Driver::require("a CUDA graph");
  thread_capture = {true, {}};
  // Relaxed: what this and other threads allocate meanwhile is no part of the graph.
  const CUresult result = driver.cuStreamBeginCapture_v2(stream_.handle(), kCaptureRelaxed);
  if (result != kCudaSuccess) thread_capture.is_open = false;
  driver.check(result, "cuStreamBeginCapture");
  is_open_ = true;
}

Capture::~Capture() {
  if (is_open_) destroy_graph(end());
  thread_capture.is_open = false;
}

// Null if the capture was spoilt.
CUgraph Capture::end() noexcept {
  is_open_ = false;
  CUgraph graph = nullptr;
  const CUresult result = Driver::get()->cuStreamEndCapture(stream_.handle(), &graph);
  return result == kCudaSuccess ? graph : nullptr;
}

GraphExec Capture::finish() {
  const Driver& driver = Driver::require("a CUDA graph");
  CUgraph graph = end();
  CUgraphExec exec = nullptr;
  CUresult result = kCudaSuccess;
  const bool is_whole = graph != nullptr && thread_capture.refusal.empty();
  if (is_whole) result = driver.cuGraphInstantiateWithFlags(&exec, graph, 0);
  destroy_graph(graph);
  if (!thread_capture.refusal.empty()) fail(ErrorCode::NotSupported, "%s", thread_capture.refusal.c_str());
  if (!is_whole) fail(ErrorCode::Internal, "the driver gave up the capture.");
  driver.check(result, "cuGraphInstantiate");
  return GraphExec(exec);
}

bool is_capturing() {
  return thread_capture.is_open;
}

std::string take_capture_refusal() {
  return std::exchange(thread_capture.refusal, {});
}

void refuse_in_capture(const char* what) {
  if (!thread_capture.is_open) return;
  const std::string reason = format("%s cannot be part of a CUDA graph.", what);
  if (thread_capture.refusal.empty()) thread_capture.refusal = reason;
  fail(ErrorCode::NotSupported, "%s", reason.c_str());
}

std::unique_lock<std::mutex> exclude_captures() {
  return std::unique_lock<std::mutex>(turns());
}

}  // namespace etcuda
