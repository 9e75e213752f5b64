#include "fake_cuda_graphs.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fake_cuda {
namespace {

using Result = int;
constexpr Result kUnsupported = 900;  // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
constexpr Result kInvalidated = 901;  // CUDA_ERROR_STREAM_CAPTURE_INVALIDATED

struct Graph {
  std::vector<Work> nodes;
};

struct Capturing {
  Graph* graph;
  bool is_spoilt = false;
};

struct Graphs {
  std::recursive_mutex mutex;
  std::map<void*, Capturing> streams;
  std::set<Graph*> graphs, execs;
  std::map<std::string, Result> failures;
  size_t launches = 0;
};

Graphs& all() {
  static auto* value = new Graphs();
  return *value;
}

[[noreturn]] void misuse(const char* what) {
  std::fprintf(stderr, "fake CUDA driver: %s\n", what);
  std::abort();
}

// The result that a test asked for, once.
Result failure_of(const char* function) {
  const auto it = all().failures.find(function);
  if (it == all().failures.end()) return 0;
  const Result result = it->second;
  all().failures.erase(it);
  return result;
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace

bool recorded(void* stream, Work work) {
  const Lock lock(all().mutex);
  const auto it = all().streams.find(stream);
  if (it == all().streams.end()) return false;
  it->second.graph->nodes.push_back(std::move(work));
  return true;
}

bool spoils_capture(void* stream) {
  const Lock lock(all().mutex);
  const auto it = all().streams.find(stream);
  if (it == all().streams.end()) return false;
  return it->second.is_spoilt = true;
}

bool spoils_any_capture() {
  const Lock lock(all().mutex);
  for (auto& entry : all().streams) entry.second.is_spoilt = true;
  return !all().streams.empty();
}

size_t live_graphs() {
  const Lock lock(all().mutex);
  return all().graphs.size() + all().execs.size();
}

size_t graph_launches() {
  const Lock lock(all().mutex);
  return all().launches;
}

// The next call of the function returns this.
EXPORT void fake_cuda_fail(const char* function, Result result) {
  const Lock lock(all().mutex);
  all().failures[function] = result;
}

EXPORT Result cuStreamBeginCapture_v2(void* stream, int mode) {
  const Lock lock(all().mutex);
  if (const Result failure = failure_of("cuStreamBeginCapture")) return failure;
  if (mode != 2) misuse("a capture that is not relaxed, during which memory is allocated");
  if (stream == nullptr || all().streams.count(stream) != 0) return kUnsupported;
  auto* graph = new Graph();
  all().graphs.insert(graph);
  all().streams[stream] = {graph};
  return 0;
}

EXPORT Result cuStreamEndCapture(void* stream, Graph** graph) {
  const Lock lock(all().mutex);
  const auto it = all().streams.find(stream);
  if (it == all().streams.end()) return kInvalidated;
  const Capturing capturing = it->second;
  all().streams.erase(it);
  const Result failure = failure_of("cuStreamEndCapture");
  if (!capturing.is_spoilt && failure == 0) return *graph = capturing.graph, 0;
  all().graphs.erase(capturing.graph);
  delete capturing.graph;
  return *graph = nullptr, failure != 0 ? failure : kInvalidated;
}

EXPORT Result cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long) {
  const Lock lock(all().mutex);
  if (all().graphs.count(graph) == 0) misuse("a graph that does not exist is instantiated");
  if (const Result failure = failure_of("cuGraphInstantiate")) return failure;
  *exec = new Graph(*graph);
  all().execs.insert(*exec);
  return 0;
}

EXPORT Result cuGraphLaunch(Graph* exec, void* stream) {
  const Lock lock(all().mutex);
  if (all().execs.count(exec) == 0) misuse("a graph that does not exist is launched");
  if (const Result failure = failure_of("cuGraphLaunch")) return failure;
  ++all().launches;
  for (const Work& node : exec->nodes) node(stream);
  return 0;
}

EXPORT Result cuGraphExecDestroy(Graph* exec) {
  const Lock lock(all().mutex);
  if (all().execs.erase(exec) == 0) misuse("an instantiated graph is destroyed twice");
  delete exec;
  return 0;
}

EXPORT Result cuGraphDestroy(Graph* graph) {
  const Lock lock(all().mutex);
  if (all().graphs.erase(graph) == 0) misuse("a graph is destroyed twice");
  delete graph;
  return 0;
}

}  // namespace fake_cuda
