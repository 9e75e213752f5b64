// A test is a function that throws; CHECK throws where its condition does not hold.
#pragma once

#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/failure.h"

namespace etcuda_test {

struct TestCase {
  const char* name;
  void (*run)();
};

inline std::vector<TestCase>& test_cases() {
  static std::vector<TestCase> cases;
  return cases;
}

struct Register {
  Register(const char* name, void (*run)()) { test_cases().push_back({name, run}); }
};

[[noreturn]] inline void fail_check(const char* file, int line, const std::string& what) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
void check_equal(const A& a, const B& b, const char* file, int line, const char* text) {
  if (a == b) return;
  std::ostringstream message;
  message << text << ": got " << a << ", expected " << b;
  fail_check(file, line, message.str());
}

// Runs `body`, which must throw a Failure of this code whose message holds `words`.
template <typename Body>
void check_fails(etcuda::ErrorCode code, const char* words, const Body& body, const char* file, int line) {
  try {
    body();
  } catch (const etcuda::Failure& failure) {
    if (failure.code() != code) {
      fail_check(file, line,
                 "wrong code " + std::to_string(static_cast<int>(failure.code())) + ": " + failure.what());
    }
    if (std::strstr(failure.what(), words) == nullptr) {
      fail_check(file, line, std::string("the message lacks '") + words + "': " + failure.what());
    }
    return;
  }
  fail_check(file, line, std::string("did not fail with '") + words + "'");
}

// Runs the tests whose names start with the only argument, or all.
inline int run_tests(int argc, char** argv) {
  int failed = 0;
  int run = 0;
  for (const TestCase& test : test_cases()) {
    if (argc > 1 && std::strncmp(test.name, argv[1], std::strlen(argv[1])) != 0) continue;
    ++run;
    try {
      test.run();
      std::printf("ok   %s\n", test.name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAIL %s\n     %s\n", test.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d run, %d failed\n", run, failed);
  return failed != 0 || run == 0 ? 1 : 0;
}

}  // namespace etcuda_test

#define TEST(name)                                                        \
  static void test_##name();                                              \
  static const etcuda_test::Register register_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition) \
  if (!(condition)) etcuda_test::fail_check(__FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) etcuda_test::check_equal((a), (b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_FAILS(code, words, ...) \
  etcuda_test::check_fails(etcuda::ErrorCode::code, words, [&] { __VA_ARGS__; }, __FILE__, __LINE__)
