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

// What `body` throws, or nothing.
template <typename Body>
std::string refusal(const Body& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

void expect_refusal(const etcuda::KeptTokens& kept, int64_t count, int64_t length, const char* part) {
  const std::string got = refusal([&] { kept.check(count, length); });
  expect(got.find(part) != std::string::npos, (std::string(part) + ", got: " + got).c_str());
}

// A prompt of 20 tokens, and 12 that were decoded.
void check_kept_tokens() {
  const auto made = [](int64_t max_rollback, int64_t slots) {
    etcuda::KeptTokens kept(max_rollback, slots);
    kept.note(20, false);
    for (int64_t length = 21; length <= 32; ++length) kept.note(length, true);
    return kept;
  };
  made(INT64_MAX, 0).check(31, 32);
  made(0, 3).require(30);
  expect(refusal([&] { made(0, 0).require(30); }).find("behind its 30 tokens, got caches of more") !=
             std::string::npos,
         "states of tokens that were not read to be refused");
  expect_refusal(made(INT64_MAX, 0), -1, 32, "expected 0 or more tokens, got -1.");
  expect_refusal(made(INT64_MAX, 0), 33, 32, "at most 32 tokens, got 33: the session holds no more.");
  made(7, 0).check(7, 32);
  expect_refusal(made(7, 0), 8, 32, "at most 7 tokens, got 8: the rings of sliding layers");
  made(0, 0).check(32, 32);
  expect_refusal(made(0, 0), 1, 32, "of the last token alone. Export with --rollback 15");
  made(0, 4).check(3, 32);
  expect_refusal(made(0, 4), 4, 32,
                 "at most 3 tokens, got 4: recurrent states are kept of the last 4 tokens");
  made(0, 16).check(12, 32);
  expect_refusal(made(0, 16), 13, 32, "at most 12 tokens, got 13: recurrent states");
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

  check_kept_tokens();
  etcuda::TokenSession back(model);
  answer(back, prompt, options, 24);
  back.rollback(10);
  expect(back.tokens() == joined(prompt, Tokens(all.begin(), all.begin() + 13)), "10 tokens fewer");
  expect(answer(back, joined(prompt, Tokens(all.begin(), all.begin() + 14)), options, 10) ==
             Tokens(all.begin() + 14, all.end()),
         "the same answer behind tokens that were taken back");
  expect(!refusal([&] { back.rollback(-1); }).empty(), "a number that is negative to be refused");
  back.rollback(static_cast<int64_t>(back.tokens().size()));
  expect(answer(back, prompt, options, 24) == all, "the same answer after all tokens were taken back");

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

  // A grammar of one token.
  etcuda::TokenSession bound(model);
  bound.advance(prompt);
  std::vector<int32_t> only(static_cast<size_t>((model.vocab_size + 31) / 32), 0);
  only[1] = 1 << 5;
  expect(bound.step(prompt.back(), options, &only) == 37, "the one token that is allowed");
  expect(bound.step(37, options) != 37, "any token behind it");
  only.pop_back();
  try {
    bound.step(5, options, &only);
    expect(false, "too few bits to be refused");
  } catch (const std::invalid_argument&) {
  }
  if (failures == 0) std::printf("ok\n");
  return failures;
}
