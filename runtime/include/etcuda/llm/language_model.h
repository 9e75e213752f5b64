// etcuda::llm: tokens from a program that `etcuda export` wrote. Headers alone.
//
//     etcuda::LanguageModel model("m.pte", "m.ptd");
//     etcuda::TokenSession session(model);
//     etcuda::SamplingOptions options;
//     etcuda::generate(session, prompt, options, 100, [](int64_t token) {
//       std::printf("%ld ", token);
//       return true;                                // false ends the answer
//     });
//
// Tokens are ids: use any tokenizer. Errors are exceptions, std::invalid_argument for what was asked and
// std::runtime_error for what failed. A model may be used from any thread, a session from one at a time.
#pragma once

#include <etcuda/llm/device_memory.h>
#include <etcuda/llm/kept_tokens.h>
#include <etcuda/llm/logits.h>
#include <etcuda/llm/sampler.h>
#include <etcuda/session.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

extern "C" size_t etcuda_last_error(char* text, size_t capacity);

namespace etcuda {

class LanguageModel {
 public:
  // `weights`: the .ptd file; empty where they are in the program.
  explicit LanguageModel(const std::string& program, const std::string& weights = "")
      : module_(program, weights.empty() ? std::vector<std::string>{} : std::vector<std::string>{weights},
                executorch::extension::Module::LoadMode::Mmap) {
    using executorch::runtime::Program;
    check(module_.load(Program::Verification::InternalConsistency), "cannot load " + program);
    const auto names = module_.method_names();
    if (!names.ok()) check(names.error(), "cannot read " + program);
    for (const char* name : {"prefill", "decode", "get_max_seq_len", "get_vocab_size"}) {
      if (names->count(name) == 0)
        throw std::invalid_argument(program +
                                    ": expected a language model that etcuda export wrote, got a program " +
                                    "without the method " + name + ".");
    }
    const auto constant = [&](const char* name, int64_t otherwise) {
      return names->count(name) != 0 ? constants(name).at(0) : otherwise;
    };
    chunk = constant("get_max_seq_len", 0);
    max_seq_len = constant("get_max_context_len", chunk);
    vocab_size = constant("get_vocab_size", 0);
    max_rollback = constant("get_max_rollback", INT64_MAX);
    state_slots = constant("get_state_slots", 0);
    weight_bytes = constant("get_weight_bytes", 0);
    decode_weight_bytes = constant("get_decode_weight_bytes", 0);
    bandwidth_mbs = constant("get_bandwidth_mbs", 0);
    if (names->count("get_cache_reads") != 0) cache_reads = constants("get_cache_reads");
    if (names->count("get_eos_ids") != 0) {
      const std::vector<int64_t> ids = constants("get_eos_ids");
      eos_ids.insert(ids.begin(), ids.end());
    }
    has_step = names->count("generate_step") != 0;
    has_gpu_ = constant("get_gpu_count", 0) != 0;
    if (has_gpu_) {
      const auto bytes = [&](const char* name) { return static_cast<uint64_t>(constant(name, 0)); };
      const std::string problem =
          device_memory_problem({bytes("get_weight_bytes"), bytes("get_cache_bytes"), max_seq_len});
      if (!problem.empty()) throw std::runtime_error(program + ": " + problem);
    }
    if (has_step) check(module_.load_method("generate_step"), program + ": cannot load method generate_step");
    for (const char* name : {"prefill", "decode"})
      check(module_.load_method(name), program + ": cannot load method " + name);
  }

  int64_t chunk;                // most tokens of one call of prefill
  int64_t max_seq_len;          // tokens that the caches hold
  int64_t vocab_size;           // number of tokens
  int64_t max_rollback;         // tokens by which a sequence can be taken back
  int64_t state_slots;          // recurrent states that are kept; 0: max_rollback says it all
  int64_t weight_bytes;         // of all weights
  int64_t decode_weight_bytes;  // of weights that a token reads
  int64_t bandwidth_mbs;        // 10^6 bytes a second of the GPU that the program is made for; 0: not known
  // What a token reads of the caches, by groups of layers: the bytes of one token's keys and values in all of
  // them, and how many tokens they read at most, 0 for all.
  std::vector<int64_t> cache_reads;
  bool has_step;              // whether it samples on the device
  std::set<int64_t> eos_ids;  // tokens that end an answer

  // Appends tokens, from one to `chunk`, to a session's caches; gives the logits of what follows the last.
  std::vector<float> run(const Session& session, const int64_t* tokens, int64_t count, int64_t position) {
    std::vector<float> logits;
    run(session, tokens, count, position, &logits);
    return logits;
  }

  // The same into a vector that is there: a new one is half a megabyte of new pages a token. Null: no logits.
  void run(const Session& session, const int64_t* tokens, int64_t count, int64_t position,
           std::vector<float>* logits) {
    using executorch::aten::ScalarType;
    using executorch::aten::SizesType;
    const std::lock_guard<std::mutex> lock(mutex_);
    const SessionScope scope(session);
    if (!scope) throw std::runtime_error("the session cannot be entered: " + reason());
    std::vector<int64_t> positions(static_cast<size_t>(count));
    std::iota(positions.begin(), positions.end(), position);
    const auto size = static_cast<SizesType>(count);
    const auto ids =
        executorch::extension::make_tensor_ptr({1, size}, const_cast<int64_t*>(tokens), ScalarType::Long);
    const auto places = executorch::extension::make_tensor_ptr({size}, positions.data(), ScalarType::Long);
    const std::vector<executorch::runtime::EValue> inputs = {*ids, *places};
    const auto outputs = module_.execute(count == 1 ? "decode" : "prefill", inputs);
    if (!outputs.ok()) check(outputs.error(), "the program failed");
    const auto& rows = outputs->at(0).toTensor();
    // Before the call becomes a graph.
    if (has_gpu_) pinned_.pin(rows.mutable_data_ptr(), rows.nbytes());
    if (logits != nullptr) last_row(rows, static_cast<size_t>(vocab_size), *logits);
  }

  // Appends a token to a session's caches and draws the next one on the device. `token` -1: the one that the
  // call before drew. `allowed`: the tokens that may be drawn, a bit each, the lowest first; null for all.
  int64_t step(const Session& session, int64_t token, int64_t position, const SamplingOptions& options,
               const std::vector<int32_t>* allowed = nullptr) {
    using executorch::aten::ScalarType;
    using executorch::extension::make_tensor_ptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    const SessionScope scope(session);
    if (!scope) throw std::runtime_error("the session cannot be entered: " + reason());
    float settings[] = {static_cast<float>(options.temperature), static_cast<float>(options.top_p),
                        static_cast<float>(options.min_p), static_cast<float>(options.repetition_penalty)};
    int64_t top_k = options.top_k, seed = static_cast<int64_t>(options.seed);
    if (every_.empty()) every_.assign(static_cast<size_t>((vocab_size + 31) / 32), -1);
    if (allowed != nullptr && allowed->size() != every_.size())
      throw std::invalid_argument("allowed: expected " + std::to_string(every_.size()) +
                                  " words, a bit for each token, got " + std::to_string(allowed->size()) +
                                  ".");
    const std::vector<int32_t>& mask = allowed != nullptr ? *allowed : every_;
    const auto words = static_cast<executorch::aten::SizesType>(mask.size());
    const auto tensors = {make_tensor_ptr({1, 1}, &token, ScalarType::Long),
                          make_tensor_ptr({1}, &position, ScalarType::Long),
                          make_tensor_ptr({4}, settings, ScalarType::Float),
                          make_tensor_ptr({1}, &top_k, ScalarType::Long),
                          make_tensor_ptr({1}, &seed, ScalarType::Long),
                          make_tensor_ptr({words}, const_cast<int32_t*>(mask.data()), ScalarType::Int)};
    std::vector<executorch::runtime::EValue> inputs;
    for (const auto& tensor : tensors) inputs.emplace_back(*tensor);
    const auto outputs = module_.execute("generate_step", inputs);
    if (!outputs.ok()) check(outputs.error(), "the program failed");
    return *outputs->at(0).toTensor().const_data_ptr<int64_t>();
  }

 private:
  static std::string reason() {
    char text[2048] = {};
    etcuda_last_error(text, sizeof(text));
    return text;
  }
  static void check(executorch::runtime::Error error, const std::string& what) {
    if (error == executorch::runtime::Error::Ok) return;
    const std::string why = reason();
    throw std::runtime_error(
        what + ": " + (why.empty() ? std::string("ExecuTorch reports ") + to_string(error) + "." : why));
  }
  std::vector<int64_t> constants(const char* name) {
    const auto values = module_.execute(name);
    if (!values.ok()) check(values.error(), std::string("cannot read ") + name);
    std::vector<int64_t> all;
    for (const auto& value : *values) all.push_back(value.toInt());
    return all;
  }
  executorch::extension::Module module_;
  bool has_gpu_ = false;
  PinnedLogits pinned_;  // behind the module, so that it goes first
  std::mutex mutex_;
  std::vector<int32_t> every_;  // every token may be drawn
};

// Caches of one sequence of tokens.
class TokenSession {
 public:
  explicit TokenSession(LanguageModel& model)
      : model_(&model), kept_(model.max_rollback, model.state_slots) {}

  LanguageModel& model() const { return *model_; }
  const std::vector<int64_t>& tokens() const { return tokens_; }

  // A session that has the same tokens in caches of its own.
  TokenSession fork() const {
    TokenSession copy(*model_);
    if (tokens_.empty()) return copy;
    auto made = session_.fork();
    if (!made.ok()) throw std::runtime_error("the session cannot be forked; the log says why.");
    copy.session_ = std::move(*made);
    copy.tokens_ = tokens_;
    copy.kept_ = kept_;
    return copy;
  }

  // How many tokens of a sequence need not be computed: at least its last one is, for its logits.
  size_t reusable(const std::vector<int64_t>& tokens) const {
    const size_t most = std::min(tokens_.size(), tokens.empty() ? 0 : tokens.size() - 1);
    size_t same = 0;
    while (same < most && tokens_[same] == tokens[same]) ++same;
    return static_cast<int64_t>(same) >= kept_.oldest() ? same : 0;
  }

  // Takes back the last `count` tokens: the sequence goes on from those in front of them. Nothing is computed
  // or copied. Throws std::invalid_argument where the session holds fewer, or has lost what goes on from
  // there; all tokens can always be taken back.
  void rollback(int64_t count) {
    kept_.check(count, size());
    tokens_.resize(tokens_.size() - static_cast<size_t>(count));
    if (tokens_.empty()) kept_.clear();
  }

  // Makes `tokens` the session's sequence; gives the logits of what follows, which last until the next call.
  const std::vector<float>& prefill(const std::vector<int64_t>& tokens) {
    check(tokens);
    extend(tokens, tokens.size(), &logits_);
    return logits_;
  }

  // Makes all of `tokens` but the last the session's sequence.
  void advance(const std::vector<int64_t>& tokens) {
    check(tokens);
    extend(tokens, tokens.size() - 1, nullptr);
  }

  // Appends a token; draws what follows on the device, of the tokens that `allowed` has bits for.
  int64_t step(int64_t token, const SamplingOptions& options, const std::vector<int32_t>* allowed = nullptr) {
    kept_.require(size());
    const int64_t drawn = model_->step(session_, token, size(), options, allowed);
    append(token);
    return drawn;
  }

  // Appends a token; gives the logits of what follows, which last until the next call.
  const std::vector<float>& decode(int64_t token) {
    kept_.require(size());
    model_->run(session_, &token, 1, size(), &logits_);
    append(token);
    return logits_;
  }

 private:
  friend class StepsAhead;

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  void append(int64_t token) {
    tokens_.push_back(token);
    kept_.note(size(), true);
  }
  void check(const std::vector<int64_t>& tokens) const {
    const int64_t count = static_cast<int64_t>(tokens.size());
    if (count < 1 || count > model_->max_seq_len)
      throw std::invalid_argument("prompt: expected 1 to " + std::to_string(model_->max_seq_len) +
                                  " tokens, got " + std::to_string(count) + ".");
    for (const int64_t token : tokens) {
      if (token < 0 || token >= model_->vocab_size)
        throw std::invalid_argument("prompt: expected token ids from 0 to " +
                                    std::to_string(model_->vocab_size - 1) + ", got " +
                                    std::to_string(token) + ".");
    }
  }

  // Computes the first `count` of `tokens`, but for those that are in the caches.
  void extend(const std::vector<int64_t>& tokens, size_t count, std::vector<float>* logits) {
    tokens_.resize(reusable(tokens));
    if (tokens_.empty()) kept_.clear();
    while (tokens_.size() < count) {
      const size_t start = tokens_.size();
      const size_t some = std::min(static_cast<size_t>(model_->chunk), count - start);
      // Of the last chunk alone.
      model_->run(session_, tokens.data() + start, static_cast<int64_t>(some), static_cast<int64_t>(start),
                  start + some == count ? logits : nullptr);
      tokens_.insert(tokens_.end(), tokens.begin() + start, tokens.begin() + start + some);
      kept_.note(size(), some == 1);
    }
  }

  LanguageModel* model_;
  Session session_;
  std::vector<int64_t> tokens_;
  std::vector<float> logits_;
  KeptTokens kept_;
};

// Tokens drawn on the device, one step ahead of the caller: while a token is read, the step behind it is
// computed. Until this is destroyed, which takes back what was not read, the session is its own.
class StepsAhead {
 public:
  // Appends `token`, draws what follows, appends that, and so on, `count` times.
  StepsAhead(TokenSession& session, int64_t token, const SamplingOptions& options, int64_t count)
      : session_(session),
        options_(options),
        token_(token),
        count_(count),
        start_(static_cast<int64_t>(session.tokens_.size())),
        thread_([this] { run(); }) {}
  StepsAhead(const StepsAhead&) = delete;
  StepsAhead& operator=(const StepsAhead&) = delete;
  ~StepsAhead() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // The next token; to be called `count` times at most. Throws what its step threw.
  int64_t next() {
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = std::min(count_, read_ + 2);
    session_.kept_.note(start_ + wanted_, true);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !drawn_.empty() || failure_; });
    if (drawn_.empty()) std::rethrow_exception(failure_);
    const int64_t drawn = drawn_.front();
    drawn_.pop_front();
    ++read_;
    session_.append(std::exchange(token_, drawn));
    return drawn;
  }

 private:
  void run() {
    // The device knows the tokens behind the first itself.
    int64_t token = token_;
    std::unique_lock<std::mutex> lock(mutex_);
    for (int64_t done = 0; done < count_; ++done) {
      changed_.wait(lock, [&] { return stopped_ || done < wanted_; });
      if (stopped_) return;
      lock.unlock();
      int64_t drawn = 0;
      std::exception_ptr failure;
      try {
        drawn = session_.model_->step(session_.session_, token, start_ + done, options_);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      failure_ = failure;
      if (!failure_) drawn_.push_back(drawn);
      changed_.notify_all();
      if (failure_) return;
      token = -1;
    }
  }

  TokenSession& session_;
  const SamplingOptions options_;
  int64_t token_;  // the next to be appended
  const int64_t count_, start_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t wanted_ = 0, read_ = 0;  // steps that may be computed, and that were read
  std::deque<int64_t> drawn_;
  std::exception_ptr failure_;
  bool stopped_ = false;
  std::thread thread_;
};

enum class Finish { kStop, kLength, kCancelled };

// Continues a prompt: gives each token to `take`, which returns whether to go on. A token that ends an answer
// ends it and is not given, unless `ignore_eos`. `max_new_tokens` 0: as many as the cache holds.
inline Finish generate(TokenSession& session, const std::vector<int64_t>& prompt,
                       const SamplingOptions& options, int64_t max_new_tokens,
                       const std::function<bool(int64_t)>& take, bool ignore_eos = false) {
  const LanguageModel& model = session.model();
  const int64_t room = model.max_seq_len - static_cast<int64_t>(prompt.size()) + 1;
  if (max_new_tokens < 0 || (room > 0 && max_new_tokens > room))
    throw std::invalid_argument("max_new_tokens: expected 0 to " + std::to_string(room) + ", got " +
                                std::to_string(max_new_tokens) + ".");
  Sampler sampler(options, prompt);
  const int64_t count = max_new_tokens == 0 ? room : max_new_tokens;
  std::optional<StepsAhead> ahead;
  if (model.has_step) {
    session.advance(prompt);
    ahead.emplace(session, prompt.back(), options, count);
  }
  int64_t token = ahead ? ahead->next() : sampler.choose(session.prefill(prompt));
  for (int64_t made = 1;; ++made) {
    if (!ignore_eos && model.eos_ids.count(token) != 0) return Finish::kStop;
    if (!take(token)) return Finish::kCancelled;
    if (made == count) return Finish::kLength;
    token = ahead ? ahead->next() : sampler.choose(session.decode(token));
  }
}

}  // namespace etcuda
