// Steps that run ahead: what is not read is taken back, and the session goes on as if it had never been
// computed. Arguments: the program, its weights. Prints "ok", or what differs.
#include <etcuda/llm/language_model.h>

#include <cstdio>

namespace {

using Tokens = std::vector<int64_t>;

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("expected %s\n", what), ++failures;
}

// What a session answers, up to `stop` tokens.
Tokens answer(etcuda::TokenSession& session, const Tokens& prompt, const etcuda::SamplingOptions& options,
              int64_t count, size_t stop = SIZE_MAX, etcuda::Finish* finish = nullptr) {
  Tokens made;
  const auto end = etcuda::generate(
      session, prompt, options, count,
      [&](int64_t token) {
        made.push_back(token);
        return made.size() < stop;
      },
      true);
  if (finish != nullptr) *finish = end;
  return made;
}

Tokens joined(Tokens first, const Tokens& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

}  // namespace

int main(int, char** arguments) {
  etcuda::LanguageModel model(arguments[1], arguments[2]);
  etcuda::SamplingOptions options;
  options.repetition_penalty = 1.3;
  Tokens prompt;
  for (int64_t i = 0; i < 20; ++i) prompt.push_back(7 + 13 * i);

  etcuda::TokenSession whole(model);
  const Tokens all = answer(whole, prompt, options, 24);
  expect(all.size() == 24, "24 tokens");
  expect(whole.tokens() == joined(prompt, Tokens(all.begin(), all.end() - 1)),
         "all but the last in the caches");

  etcuda::TokenSession session(model);
  etcuda::Finish finish;
  const Tokens first = answer(session, prompt, options, 24, 6, &finish);
  expect(finish == etcuda::Finish::kCancelled, "an answer that was cancelled");
  expect(first == Tokens(all.begin(), all.begin() + 6), "the first tokens of the answer");
  expect(session.tokens() == joined(prompt, Tokens(all.begin(), all.begin() + 5)),
         "no token that was not read");
  etcuda::TokenSession copy = session.fork();
  const Tokens rest(all.begin() + 6, all.end());
  expect(answer(session, joined(prompt, first), options, 18) == rest, "the rest of the answer");
  expect(answer(copy, joined(prompt, first), options, 18) == rest, "the rest of the answer from a fork");

  // An end: the token is not given, and nothing of it stays.
  model.eos_ids = {all[9]};
  size_t ends = 0;
  while (all[ends] != all[9]) ++ends;
  Tokens made;
  etcuda::TokenSession ended(model);
  const auto end = etcuda::generate(ended, prompt, options, 24, [&](int64_t token) {
    made.push_back(token);
    return true;
  });
  expect(end == etcuda::Finish::kStop, "an answer that ends by its token");
  expect(made == Tokens(all.begin(), all.begin() + static_cast<ptrdiff_t>(ends)),
         "the tokens before the end");
  expect(ended.tokens() == joined(prompt, made), "the end in no cache");
  expect(answer(ended, prompt, options, 24) == all, "the same answer after it was taken back");

  // What a step throws reaches the caller, here of an answer that the caches have no room for.
  etcuda::TokenSession full(model);
  full.advance(prompt);
  try {
    etcuda::StepsAhead steps(full, prompt.back(), options, model.max_seq_len);
    for (int64_t i = 0; i < model.max_seq_len; ++i) steps.next();
    expect(false, "a step behind the caches' end to fail");
  } catch (const std::runtime_error&) {
  }
  expect(answer(full, prompt, options, 24) == all, "the same answer after a step that failed");
  if (failures == 0) std::printf("ok\n");
  return failures;
}
