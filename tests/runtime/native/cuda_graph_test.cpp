// Calls as CUDA graphs, against the fake driver: what is launched again, what is not, and what failures
// leave.
#include <thread>

#include "cuda/stream.h"
#include "graphs.h"
#include "logged.h"

using namespace etcuda;
using namespace etcuda_test;

namespace {

std::vector<float> numbers(size_t count, int seed) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>((seed * 7 + static_cast<int>(i) * 3) % 11);
  return values;
}

// A tensor on the fake GPU.
class DeviceTensor {
 public:
  explicit DeviceTensor(int32_t size) : size_(size) {
    Driver& driver = Driver::require("a test");
    driver.use_device(0);
    CHECK_EQ(driver.cuMemAlloc_v2(&memory_, static_cast<size_t>(size) * sizeof(float)), 0);
    impl_ = std::make_unique<executorch::aten::TensorImpl>(
        executorch::aten::ScalarType::Float, 1, &size_, data(), &order_, &stride_,
        executorch::aten::TensorShapeDynamism::DYNAMIC_BOUND, executorch::runtime::etensor::DeviceType::CUDA,
        executorch::runtime::etensor::DeviceIndex{0});
    value_ = EValue(executorch::aten::Tensor(impl_.get()));
  }
  ~DeviceTensor() { Driver::require("a test").cuMemFree_v2(memory_); }
  DeviceTensor(const DeviceTensor&) = delete;
  float* data() { return reinterpret_cast<float*>(memory_); }
  EValue* value() { return &value_; }

 private:
  CUdeviceptr memory_ = 0;
  int32_t size_;
  uint8_t order_ = 0;
  int32_t stride_ = 1;
  std::unique_ptr<executorch::aten::TensorImpl> impl_;
  EValue value_;
};

}  // namespace

TEST(cuda_graphs_replay_what_plain_calls_compute) {
  const BlobRecipe recipe = graph_recipe();
  BlobRecipe renamed = recipe;
  renamed.state_name = "another";
  const MemoryDataMap data(recipe), other_data(renamed);
  Loaded graphed(recipe.build(), &data), reference(renamed.build(), &other_data);
  const EtcudaGraphStats before = stats();
  for (int step = 0; step < 2000; ++step) {
    const std::vector<float> x = numbers(static_cast<size_t>((step * 4 + step / 9) % 9), step);
    CHECK(graphed.run(x) == plain(reference, x));
  }
  // Of nine sizes, one asks the host for a value.
  CHECK_EQ(stats().captures - before.captures, uint64_t{8});
  CHECK_EQ(stats().refusals - before.refusals, uint64_t{1});
  CHECK(stats().replays - before.replays > 1700);
  CHECK_EQ(counts().graphs, size_t{8});
}

TEST(cuda_graphs_are_launched_from_the_third_call_on) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const Counts before = counts();
  for (int i = 0; i < 2; ++i) delegate.run({1, 1});
  CHECK_EQ(counts().graph_launches, before.graph_launches);
  CHECK_EQ(counts().launches, before.launches + 2);
  CHECK_VALUES(delegate.run({1, 1}), {13, 46});
  CHECK_EQ(counts().graph_launches, before.graph_launches + 1);
  CHECK_VALUES(delegate.run({1, 2}), {14, 50});
  CHECK_EQ(counts().graph_launches, before.graph_launches + 2);
  CHECK_EQ(counts().launches, before.launches + 4);
}

TEST(cuda_graphs_of_sessions_are_their_own) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  Session a, b;
  const EtcudaGraphStats before = stats();
  for (int i = 1; i <= 200; ++i) {
    const auto n = static_cast<float>(i);
    CHECK_VALUES(run_in(a, delegate, {1, 0}), {10 + n, 40});
    CHECK_VALUES(run_in(b, delegate, {0, 1}), {10, 2 * (20 + n)});
    CHECK_VALUES(delegate.run({0, 0}), {10, 40});
  }
  CHECK_EQ(stats().captures - before.captures, uint64_t{3});
  CHECK(a.reset() == Error::Ok);
  CHECK_VALUES(run_in(a, delegate, {1, 0}), {11, 40});
  CHECK_EQ(stats().captures - before.captures, uint64_t{3});
  // Other memory, so the old graph is of no use, and goes when the next one is recorded.
  const auto saved = a.save();
  CHECK(saved.ok() && a.restore(saved->data(), saved->size()) == Error::Ok);
  for (int i = 0; i < 3; ++i) run_in(a, delegate, {1, 0});
  CHECK_EQ(stats().captures - before.captures, uint64_t{4});
  CHECK_EQ(counts().graphs, size_t{3});
  CHECK_VALUES(run_in(a, delegate, {1, 0}), {15, 40});
}

TEST(cuda_graphs_of_more_sessions_than_there_may_be_graphs) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  std::vector<Session> sessions(40);
  const EtcudaGraphStats before = stats();
  for (int i = 1; i <= 10; ++i) {
    for (const Session& session : sessions) CHECK_VALUES(run_in(session, delegate, {1}), {10.0f + i});
  }
  // The last eight run without, instead of taking the others' place in turn.
  CHECK_EQ(stats().captures - before.captures, uint64_t{32});
  CHECK_EQ(stats().replays - before.replays, uint64_t{32 * 8});
}

TEST(cuda_graphs_of_a_session_that_is_gone_go) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  for (int i = 0; i < 30; ++i) {
    Session session;
    for (int j = 0; j < 4; ++j) run_in(session, delegate, {1});
  }
  CHECK_EQ(counts().graphs, size_t{1});
}

TEST(cuda_what_cannot_be_captured_runs_as_before) {
  BlobRecipe recipe = graph_recipe();
  recipe.image = "image_cuda.so";
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const EtcudaGraphStats before = stats();
  const std::string log = logged([&] {
    for (int i = 1; i <= 20; ++i) CHECK_VALUES(delegate.run({1, 1}), {10.0f + i, 2 * (20.0f + i)});
  });
  const size_t line = log.find("method forward runs without a CUDA graph, as before: a copy between the GPU");
  CHECK(line != std::string::npos && log.find("without a CUDA graph", line + 40) == std::string::npos);
  CHECK_EQ(stats().refusals - before.refusals, uint64_t{1});
  CHECK_EQ(stats().replays, before.replays);
  CHECK_EQ(etcuda_last_error(nullptr, 0), size_t{0});
  // After eight sizes of which it could not, it is not tried with the rest.
  for (int round = 0; round < 4; ++round) {
    for (size_t size = 0; size <= 8; ++size) delegate.run(std::vector<float>(size, 0.0f));
  }
  CHECK_EQ(stats().refusals - before.refusals, uint64_t{8});
}

TEST(cuda_failed_captures_leave_a_working_method) {
  for (const char* function :
       {"cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"}) {
    const BlobRecipe recipe = graph_recipe();
    const MemoryDataMap data(recipe);
    Loaded delegate(recipe.build(), &data);
    delegate.run({1, 1});
    const EtcudaGraphStats before = stats();
    fail_next(function, 999);
    for (int i = 2; i <= 6; ++i) CHECK_VALUES(delegate.run({1, 1}), {10.0f + i, 2 * (20.0f + i)});
    CHECK_EQ(stats().refusals - before.refusals, uint64_t{1});
    CHECK_EQ(counts().graphs, size_t{0});
    CHECK_EQ(device_memory().graphs, uint64_t{0});
    // Other sizes are captured.
    for (int i = 0; i < 3; ++i) delegate.run({0, 0, 0});
    CHECK_EQ(counts().graphs, size_t{1});
  }
}

TEST(cuda_graphs_can_be_turned_off) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  for (int i = 0; i < 4; ++i) delegate.run({1, 1});
  CHECK_EQ(counts().graphs, size_t{1});
  const uint64_t replays = stats().replays;
  for (int i = 0; i < 4; ++i) plain(delegate, {1, 1});
  CHECK_EQ(counts().graphs, size_t{0});
  CHECK_EQ(device_memory().graphs, uint64_t{0});
  CHECK_EQ(stats().replays, replays);
  CHECK_VALUES(delegate.run({1, 1}), {19, 58});
}

TEST(cuda_graphs_are_an_option_of_the_backend) {
  const auto set = [](bool enabled) {
    executorch::runtime::BackendOptionContext context;
    executorch::runtime::BackendOptions<1> options;
    CHECK(options.set_option("cuda_graphs", enabled) == Error::Ok);
    CHECK(backend().set_option(context, options.view()) == Error::Ok);
  };
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  set(false);
  for (int i = 0; i < 4; ++i) delegate.run({1});
  CHECK_EQ(counts().graphs, size_t{0});
  set(true);
  for (int i = 0; i < 4; ++i) delegate.run({1});
  CHECK_EQ(counts().graphs, size_t{1});
}

TEST(cuda_tensors_on_the_gpu_are_used_in_place) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  DeviceTensor in(2), out(2), other_in(2);
  const EtcudaGraphStats before = stats();
  for (int i = 1; i <= 10; ++i) {
    in.data()[0] = 1;
    in.data()[1] = 0;
    CHECK(delegate.execute({in.value(), out.value()}) == Error::Ok);
    CHECK_EQ(out.data()[0], 10.0f + i);
    CHECK_EQ(out.data()[1], 40.0f);
  }
  CHECK_EQ(stats().captures - before.captures, uint64_t{1});
  // Another address is another graph.
  other_in.data()[0] = other_in.data()[1] = 5;
  for (int i = 1; i <= 4; ++i) {
    CHECK(delegate.execute({other_in.value(), out.value()}) == Error::Ok);
    CHECK_EQ(out.data()[0], 20.0f + 5 * i);
  }
  CHECK_EQ(stats().captures - before.captures, uint64_t{2});
}

TEST(cuda_graphs_write_large_outputs_that_are_pinned) {
  constexpr size_t kCount = 20000, kBytes = kCount * sizeof(float);
  BlobRecipe recipe = graph_recipe();
  recipe.weight = bytes_of(std::vector<float>(kCount, 2.0f));
  recipe.state = bytes_of(std::vector<float>(kCount, 1.0f));
  recipe.max_length = kCount;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  TensorValue in = TensorValue::floats(std::vector<float>(kCount, 3.0f));
  TensorValue out = TensorValue::floats(std::vector<float>(kCount));
  int calls = 0;
  // How much pinned memory they took in the end, which is where others' outputs arrive.
  const auto staging_of_calls = [&](uint64_t captures) {
    const EtcudaGraphStats before = stats();
    for (int i = 0; i < 4; ++i) {
      CHECK(delegate.execute({in.value(), out.value()}) == Error::Ok);
      ++calls;
      CHECK_EQ(out.read()[0], 2.0f * (1 + 3 * calls));
      CHECK_EQ(out.read()[kCount - 1], 2.0f * (1 + 3 * calls));
    }
    CHECK_EQ(stats().captures - before.captures, captures);
    return pinned_allocator().stats().allocated;
  };
  CHECK_EQ(etcuda_pin_memory(out.memory(), kBytes), 0);
  const uint64_t in_place = staging_of_calls(1);
  // Not pinned any more: the graph that wrote there is not launched.
  CHECK_EQ(etcuda_unpin_memory(out.memory()), 0);
  CHECK(staging_of_calls(1) >= in_place + kBytes);
}

TEST(cuda_memory_that_cannot_be_pinned_says_why) {
  char byte = 0;
  CHECK_EQ(etcuda_pin_memory(nullptr, 10), -1);
  CHECK(last_reported_error().find("memory to pin: expected an address and 1 byte or more, got") !=
        std::string::npos);
  CHECK_EQ(etcuda_pin_memory(&byte, 1), 0);
  CHECK_EQ(etcuda_pin_memory(&byte, 1), -1);
  CHECK(last_reported_error().find("cuMemHostRegister failed with") != std::string::npos);
  CHECK_EQ(etcuda_unpin_memory(&byte), 0);
}

TEST(cuda_wrong_outputs_are_refused_before_a_launch) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  for (int i = 0; i < 4; ++i) delegate.run({1, 1});
  TensorValue in = TensorValue::floats({1, 1}), out(executorch::aten::ScalarType::Float, {1}, 4);
  CHECK(delegate.execute({in.value(), out.value()}) != Error::Ok);
  CHECK_VALUES(delegate.run({1, 1}), {15, 50});
}

TEST(cuda_several_threads_capture_and_run) {
  const BlobRecipe recipe = graph_recipe();
  const MemoryDataMap data(recipe);
  const Bytes blob = recipe.build();
  std::vector<std::string> errors(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < errors.size(); ++t) {
    threads.emplace_back([&, t] {
      try {
        for (int round = 0; round < 20; ++round) {
          Loaded delegate(blob, &data);
          const Session session;
          for (int i = 1; i <= 10; ++i) CHECK_VALUES(run_in(session, delegate, {1, 0}), {10.0f + i, 40});
          etcuda_empty_cache();
        }
      } catch (const std::exception& error) {
        errors[t] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) CHECK_EQ(error, std::string());
}
