// Two answers to one prompt with a language model's program: the second session is forked from the first, and
// the prompt is computed once.
//
// Usage: generate_ids m.pte m.ptd TOKENS ID...

#include <etcuda/llm/language_model.h>

#include <iostream>

namespace {

void answer(etcuda::TokenSession& session, const std::vector<int64_t>& prompt, double temperature,
            int64_t tokens) {
  etcuda::SamplingOptions options;
  options.temperature = temperature;
  const auto take = [](int64_t token) {
    std::cout << token << ' ';
    return true;
  };
  etcuda::generate(session, prompt, options, tokens, take, /*ignore_eos=*/true);
  std::cout << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: generate_ids m.pte m.ptd TOKENS ID...\n";
    return 2;
  }
  try {
    etcuda::LanguageModel model(argv[1], argv[2]);
    std::vector<int64_t> prompt;
    for (int i = 4; i < argc; ++i) prompt.push_back(std::stoll(argv[i]));
    etcuda::TokenSession first(model);
    first.prefill(prompt);
    etcuda::TokenSession second = first.fork();
    answer(first, prompt, 0.0, std::stoll(argv[3]));
    answer(second, prompt, 1.0, std::stoll(argv[3]));
  } catch (const std::exception& error) {
    std::cerr << "generate_ids: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
