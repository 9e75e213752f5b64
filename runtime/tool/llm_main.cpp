// llm_runner: token ids from a language model's program, and how fast.
#include <etcuda/llm/language_model.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "api.h"
#include "core/text.h"
#include "tool/llm_options.h"
#include "tool/options.h"

namespace etcuda_runner {
namespace {

using Clock = std::chrono::steady_clock;

// Calls of a kind that are not counted.
constexpr int64_t kWarmCalls = 3;

int64_t nanoseconds_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

// Most bytes in use on the GPU, or on the host where there is none.
uint64_t peak_bytes() {
  EtcudaMemoryStats stats[16];
  const size_t count = std::min<size_t>(etcuda_memory_stats(stats, 16), 16);
  uint64_t host = 0, device = 0;
  for (size_t i = 0; i < count; ++i) {
    uint64_t& peak = stats[i].device_type == 0 ? host : device;
    peak = std::max(peak, stats[i].peak);
  }
  return device != 0 ? device : host;
}

// ", \"gpu_used_bytes\": N": all that is in use on the GPU, the driver's own and other programs' too; ""
// where there is none.
std::string gpu_used() {
  uint64_t free_bytes = 0, total_bytes = 0, in_use = 0;
  if (etcuda_gpu_available() == 0 || etcuda_device_memory(&free_bytes, &total_bytes, &in_use) != 0) return "";
  return ", \"gpu_used_bytes\": " + std::to_string(total_bytes - free_bytes);
}

void answer(etcuda::LanguageModel& model, const LlmOptions& options, int64_t load_ns) {
  etcuda::TokenSession session(model);
  const auto start = Clock::now();
  int64_t first_ns = 0, tokens = 0, last_ns = 0;
  const auto take = [&](int64_t token) {
    last_ns = nanoseconds_since(start);
    if (tokens == 0) first_ns = last_ns;
    std::printf(tokens == 0 ? "%lld" : " %lld", static_cast<long long>(token));
    std::fflush(stdout);
    ++tokens;
    return true;
  };
  const etcuda::Finish finish = etcuda::generate(session, options.ids, options.sampling,
                                                 options.max_new_tokens, take, options.ignore_eos);
  std::printf("\n");
  std::fprintf(
      stderr,
      "{\"load_seconds\": %.6f, \"prompt_tokens\": %zu, \"prefill_seconds\": %.6f, \"generated_tokens\": "
      "%lld, \"decode_seconds\": %.6f, \"finish_reason\": \"%s\", \"peak_bytes\": %llu}\n",
      load_ns * 1e-9, options.ids.size(), first_ns * 1e-9, static_cast<long long>(tokens),
      (last_ns - first_ns) * 1e-9, finish == etcuda::Finish::kStop ? "stop" : "length",
      static_cast<unsigned long long>(peak_bytes()));
}

// Runs tokens from `position` on: a prompt in chunks, or one by one.
void run_tokens(etcuda::LanguageModel& model, const etcuda::Session& session,
                const std::vector<int64_t>& tokens, bool is_prompt, int64_t position) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  const int64_t most = is_prompt ? model.chunk : 1;
  static std::vector<float> logits;
  for (int64_t done = 0; done < count; done += most)
    model.run(session, tokens.data() + done, std::min(most, count - done), position + done, &logits);
}

std::vector<int64_t> some_tokens(int64_t count, int64_t vocab_size) {
  etcuda::Philox random(0);
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<int64_t>(random.next() % static_cast<uint64_t>(vocab_size)));
  return tokens;
}

// Tokens one by one, each drawn on the device from the one before.
void run_steps(etcuda::LanguageModel& model, const etcuda::Session& session, int64_t count, int64_t position,
               const etcuda::SamplingOptions& options) {
  for (int64_t i = 0; i < count; ++i) model.step(session, i == 0 ? 0 : -1, position + i, options);
}

void bench(etcuda::LanguageModel& model, LlmOptions options, int64_t load_ns) {
  if (options.shorten) {
    const int64_t deepest = *std::max_element(options.depths.begin(), options.depths.end());
    for (BenchTest& test : options.bench)
      test.tokens = std::min(test.tokens, std::max<int64_t>(1, model.max_seq_len - deepest));
  }
  for (const int64_t depth : options.depths) {
    for (const BenchTest& test : options.bench) {
      if (depth + test.tokens > model.max_seq_len)
        throw RunnerError(kInputFailed, test.name() + " at depth " + std::to_string(depth) +
                                            ": expected at most " + std::to_string(model.max_seq_len) +
                                            " tokens in the cache, got " +
                                            std::to_string(depth + test.tokens) +
                                            ". Ask for fewer, or export with a longer --max-seq-len.");
      if (test.kind == "gs" && !model.has_step)
        throw RunnerError(kInputFailed, test.name() +
                                            ": expected a program with the method generate_step, got one " +
                                            "without it. Export with --device-sampling.");
    }
  }
  // The first step of a program, which loads kernels, and chooses algorithms.
  const auto begin = Clock::now();
  run_tokens(model, etcuda::Session(), {0}, false, 0);
  const int64_t first_step_ns = nanoseconds_since(begin);
  std::string reads;
  for (const int64_t each : model.cache_reads) reads += (reads.empty() ? "" : ", ") + std::to_string(each);
  std::printf(
      "{\"load_ns\": %lld, \"first_step_ns\": %lld, \"weight_bytes\": %lld, \"chunk\": %lld, "
      "\"max_seq_len\": %lld, \"decode_weight_bytes\": %lld, \"bandwidth_mbs\": %lld, \"cache_reads\": "
      "[%s]}\n",
      static_cast<long long>(load_ns), static_cast<long long>(first_step_ns),
      static_cast<long long>(model.weight_bytes), static_cast<long long>(model.chunk),
      static_cast<long long>(model.max_seq_len), static_cast<long long>(model.decode_weight_bytes),
      static_cast<long long>(model.bandwidth_mbs), reads.c_str());
  for (const int64_t depth : options.depths) {
    const etcuda::Session session;
    run_tokens(model, session, some_tokens(depth, model.vocab_size), true, 0);
    for (const BenchTest& test : options.bench) {
      const std::vector<int64_t> tokens = some_tokens(test.tokens, model.vocab_size);
      std::printf("{\"test\": \"%s\", \"depth\": %lld, \"tokens\": %lld, \"ns\": [", test.name().c_str(),
                  static_cast<long long>(depth), static_cast<long long>(test.tokens));
      const auto run = [&] {
        if (test.kind == "gs") {
          run_steps(model, session, test.tokens, depth, options.sampling);
        } else {
          run_tokens(model, session, tokens, test.kind == "pp", depth);
        }
      };
      // After two calls of a kind it becomes a CUDA graph.
      const int64_t calls = test.kind == "pp" ? (test.tokens + model.chunk - 1) / model.chunk : test.tokens;
      for (int64_t done = 0; done < kWarmCalls; done += calls) run();
      for (int64_t i = 0; i < options.repetitions; ++i) {
        const auto start = Clock::now();
        run();
        std::printf(i == 0 ? "%lld" : ", %lld", static_cast<long long>(nanoseconds_since(start)));
      }
      std::printf("]}\n");
      std::fflush(stdout);
    }
  }
  std::printf("{\"peak_bytes\": %llu%s}\n", static_cast<unsigned long long>(peak_bytes()),
              gpu_used().c_str());
}

int guarded_main(int argc, char** argv) {
  ExitCode stage = kLoadFailed;
  try {
    const LlmOptions options = parse_llm_options(argc, argv);
    if (options.help) {
      std::fputs(llm_usage(), stdout);
      return kOk;
    }
    if (options.verify_weights) etcuda_set_verify_weights(*options.verify_weights ? 1 : 0);
    const auto start = Clock::now();
    etcuda::LanguageModel model(options.model_path, options.data_path);
    const int64_t load_ns = nanoseconds_since(start);
    stage = kExecutionFailed;
    if (options.bench.empty()) {
      answer(model, options, load_ns);
    } else {
      bench(model, options, load_ns);
    }
    return kOk;
  } catch (const RunnerError& error) {
    std::fprintf(stderr, "llm_runner: %s\n", etcuda::printable(error.what()).c_str());
    if (error.code() == kUsage) std::fputs("Try llm_runner --help.\n", stderr);
    return error.code();
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "llm_runner: %s\n", etcuda::printable(error.what()).c_str());
    return stage == kLoadFailed ? kLoadFailed : kInputFailed;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llm_runner: %s\n", etcuda::printable(error.what()).c_str());
    return stage;
  }
}

}  // namespace
}  // namespace etcuda_runner

int main(int argc, char** argv) {
  return etcuda_runner::guarded_main(argc, argv);
}
