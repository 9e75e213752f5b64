// The kernel that checks what a model asserts about values: its sentence, and arguments that a damaged
// program may give it.
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include "api.h"
#include "program.h"

using namespace etcuda_test;
using executorch::aten::ArrayRef;
using executorch::runtime::BoxedEvalueList;
using executorch::runtime::EValue;
using executorch::runtime::KernelRuntimeContext;

namespace {

constexpr const char* kName = "etcuda::check_value.out";

// The values of a call, which live where the program's would.
struct Call {
  EValue condition{false};
  EValue holds{true};
  std::string text = "expected n <= 8, got n = {} {} {}.";
  EValue numbers[2] = {EValue(int64_t{9}), EValue(int64_t{-3})};
  EValue* boxed[2] = {&numbers[0], &numbers[1]};
  int64_t unboxed[2] = {};
  ArrayRef<char> characters{text.data(), text.size()};
  EValue message{&characters};
  BoxedEvalueList<int64_t> list{boxed, unboxed, 2};
  EValue values{&list};
  EValue out{};
  EValue* stack[6] = {&condition, &holds, &message, &values, &out, &out};

  Error run(size_t count = 6) {
    KernelRuntimeContext context;
    const auto function = executorch::runtime::get_op_function_from_registry(kName);
    CHECK(function.ok());
    (*function)(context, {stack, count});
    return context.failure_state();
  }
};

std::string last_error() {
  char text[512] = {};
  etcuda_last_error(text, sizeof(text));
  return text;
}

}  // namespace

TEST(a_check_that_holds_says_nothing) {
  Call call;
  call.condition = EValue(true);
  CHECK(call.run() == Error::Ok);
  call.condition = EValue(int64_t{1});
  CHECK(call.run() == Error::Ok);
  call.condition = call.holds = EValue(false);
  CHECK(call.run() == Error::Ok);
}

TEST(a_check_that_does_not_hold_has_the_values_in_its_sentence) {
  Call call;
  CHECK(call.run() == Error::InvalidArgument);
  CHECK_EQ(last_error(), std::string("expected n <= 8, got n = 9 -3 {}."));
  call.condition = EValue(int64_t{0});
  CHECK(call.run() == Error::InvalidArgument);
}

TEST(a_check_of_a_damaged_program_fails) {
  for (size_t place = 0; place < 4; ++place) {
    Call call;
    EValue none;
    call.stack[place] = &none;
    CHECK(call.run() == Error::InvalidProgram);
    CHECK(last_error().find("The program is damaged") != std::string::npos);
  }
  Call call;
  call.numbers[1] = EValue(1.5);
  CHECK(call.run() == Error::InvalidProgram);
  CHECK(call.run(2) == Error::InvalidProgram);
}
