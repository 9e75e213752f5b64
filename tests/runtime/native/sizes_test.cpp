// Sizes that follow from other sizes: what is read, what is refused, what a call is told.
#include <limits>

#include "blob/sizes.h"
#include "program.h"

using namespace etcuda_test;
using etcuda::schema::Dim;
using etcuda::schema::SizeOp;

namespace {

using Edit = void (*)(etcuda::schema::DelegateT&);

// The result of calling a delegate that `edit` made of the usual one with a vector of `length`.
Error call(Edit edit, size_t length) {
  BlobRecipe recipe;
  recipe.edit = edit;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  TensorValue in = TensorValue::floats(std::vector<float>(length, 1));
  TensorValue out(executorch::aten::ScalarType::Float, {8}, 4);
  return delegate.execute({in.value(), out.value()});
}

Error load(Edit edit) {
  BlobRecipe recipe;
  recipe.edit = edit;
  const MemoryDataMap data(recipe);
  return Loaded(recipe.build(), &data).error;
}

void even(etcuda::schema::DelegateT& root) {
  root.sizes.clear();
  add_size(root.sizes, "d", {input_step(0, 0), step(SizeOp::constant, 2), step(SizeOp::exact_divide)});
  add_size(root.sizes, "2*d", {step(SizeOp::size, 0), step(SizeOp::constant, 2), step(SizeOp::multiply)});
  root.inputs[0]->dims[0] = Dim(0, 8, 1);
  root.outputs[0]->dims[0] = Dim(0, 8, 1);
}

void condition(etcuda::schema::DelegateT& root, std::initializer_list<etcuda::schema::SizeStep> steps) {
  add_size(root.conditions, "the condition", steps);
}

}  // namespace

TEST(sizes_of_another_form_are_refused) {
  CHECK(call(even, 4) == Error::Ok);
  CHECK(call(even, 0) == Error::Ok);
  CHECK_ERROR(call(even, 7), InvalidArgument,
              "input 0 (x): dimension 0 has size 7, expected one that is 2*d for a whole number d");
}

TEST(sizes_are_compared_with_what_they_follow_from) {
  const Edit shifted = [](etcuda::schema::DelegateT& root) {
    add_size(root.sizes, "n + 1", {step(SizeOp::size, 0), step(SizeOp::constant, 1), step(SizeOp::add)});
    root.inputs[0]->dims[0] = Dim(0, 8, 1);
  };
  CHECK_ERROR(
      call(shifted, 3), InvalidArgument,
      "input 0 (x): dimension 0 has size 3, expected 4: the model was exported with n + 1 there, and n + 1 = "
      "3 in dimension 0 of input 0 (x)");
}

TEST(conditions_are_checked) {
  const Edit below = [](etcuda::schema::DelegateT& root) {
    condition(root, {step(SizeOp::size, 0), step(SizeOp::constant, 4), step(SizeOp::less)});
  };
  CHECK(call(below, 3) == Error::Ok);
  CHECK_ERROR(call(below, 4), InvalidArgument,
              "expected the condition, as the model was exported; n = 4 in dimension 0 of input 0 (x)");
  const Edit divides = [](etcuda::schema::DelegateT& root) {
    condition(root, {step(SizeOp::constant, 1), input_step(0, 0), step(SizeOp::modulo)});
  };
  CHECK_ERROR(call(divides, 0), InvalidArgument,
              "the condition cannot be computed from the sizes of the inputs: it would be divided by 0");
  const Edit overflows = [](etcuda::schema::DelegateT& root) {
    condition(root, {step(SizeOp::size, 0), step(SizeOp::constant, INT64_MAX), step(SizeOp::multiply)});
  };
  CHECK_ERROR(call(overflows, 2), InvalidArgument, "the number is too large");
}

TEST(a_refused_call_changes_nothing) {
  BlobRecipe recipe;
  recipe.edit = even;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  TensorValue odd = TensorValue::floats({1, 1, 1}), out(executorch::aten::ScalarType::Float, {8}, 4);
  CHECK_ERROR(delegate.execute({odd.value(), out.value()}), InvalidArgument, "2*d");
  CHECK_VALUES(delegate.run({1, 1}), {1, 2});
}

TEST(sizes_that_cannot_be_computed_are_refused_when_read) {
  CHECK_ERROR(load([](auto& root) { condition(root, {input_step(1, 0)}); }), InvalidProgram,
              "reads dimension 0 of input 1, which does not exist");
  CHECK_ERROR(load([](auto& root) { condition(root, {input_step(0, 1)}); }), InvalidProgram,
              "reads dimension 1 of input 0");
  CHECK_ERROR(load([](auto& root) { condition(root, {input_step(-1, 0)}); }), InvalidProgram,
              "which does not exist");
  CHECK_ERROR(load([](auto& root) { condition(root, {step(SizeOp::size, 1)}); }), InvalidProgram,
              "reads size 1, which does not stand before it");
  CHECK_ERROR(load([](auto& root) { add_size(root.sizes, "itself", {step(SizeOp::size, 1)}); }),
              InvalidProgram, "size 1 (itself) reads size 1");
  CHECK_ERROR(load([](auto& root) { condition(root, {step(SizeOp::size, -1)}); }), InvalidProgram,
              "reads size");
  CHECK_ERROR(load([](auto& root) { condition(root, {step(SizeOp::constant, 1), step(SizeOp::add)}); }),
              InvalidProgram, "takes more values than it has");
  CHECK_ERROR(load([](auto& root) { condition(root, {step(SizeOp::logical_not)}); }), InvalidProgram,
              "takes more values than it has");
  CHECK_ERROR(load([](auto& root) { condition(root, {}); }), InvalidProgram, "leaves 0 values, expected 1");
  CHECK_ERROR(load([](auto& root) { condition(root, {input_step(0, 0), input_step(0, 0)}); }), InvalidProgram,
              "leaves 2 values, expected 1");
  CHECK_ERROR(load([](auto& root) { condition(root, {step(static_cast<SizeOp>(15))}); }), InvalidProgram,
              "has step 15, which this runtime does not know");
  CHECK_ERROR(load([](auto& root) { condition(root, {step(static_cast<SizeOp>(-1))}); }), InvalidProgram,
              "has step -1");
  CHECK_ERROR(load([](auto& root) { root.inputs[0]->dims[0] = Dim(0, 8, 1); }), InvalidProgram,
              "input 0 (x), dimension 0 has size 1 of 1");
  CHECK_ERROR(load([](auto& root) { root.outputs[0]->dims[0] = Dim(0, 8, -2); }), InvalidProgram,
              "output 0 (y), dimension 0 has size -2");
  CHECK_ERROR(load([](auto& root) { root.sizes[0]->text = ""; }), InvalidProgram, "size 0 has no name");
}

TEST(sizes_have_a_bounded_length_and_depth) {
  const Edit deep = [](etcuda::schema::DelegateT& root) {
    std::vector<etcuda::schema::SizeStep> steps(etcuda::kMaxSizeDepth + 1, input_step(0, 0));
    steps.resize(2 * steps.size() - 1, step(SizeOp::add));
    add_size(root.sizes, "deep", steps);
  };
  CHECK_ERROR(load(deep), InvalidProgram, "holds 17 values at once");
  const Edit lengthy = [](etcuda::schema::DelegateT& root) {
    std::vector<etcuda::schema::SizeStep> steps(1, input_step(0, 0));
    while (steps.size() <= etcuda::kMaxSizeSteps) {
      steps.push_back(input_step(0, 0));
      steps.push_back(step(SizeOp::add));
    }
    add_size(root.sizes, "lengthy", steps);
  };
  CHECK_ERROR(load(lengthy), InvalidProgram, "has 257 steps");
}

TEST(operators_of_sizes) {
  using Op = etcuda::SizeOp;
  using etcuda::SizeError;
  const auto is = [](Op op, int64_t a, int64_t b, int64_t expected) {
    int64_t result = -1;
    CHECK(apply(op, a, b, &result) == SizeError::kNone);
    CHECK_EQ(result, expected);
  };
  is(Op::kAdd, 2, 3, 5);
  is(Op::kSubtract, 2, 3, -1);
  is(Op::kMultiply, 2, 3, 6);
  is(Op::kFloorDivide, 7, 2, 3);
  is(Op::kFloorDivide, -7, 2, -4);
  is(Op::kFloorDivide, 7, -2, -4);
  is(Op::kFloorDivide, -8, 2, -4);
  is(Op::kModulo, 7, 2, 1);
  is(Op::kModulo, -7, 2, 1);
  is(Op::kModulo, 7, -2, -1);
  is(Op::kExactDivide, 8, 2, 4);
  is(Op::kMinimum, 8, 2, 2);
  is(Op::kMaximum, 8, 2, 8);
  is(Op::kEqual, 8, 8, 1);
  is(Op::kEqual, 8, 2, 0);
  is(Op::kLess, 2, 2, 0);
  is(Op::kLessEqual, 2, 2, 1);
  is(Op::kNot, 0, 0, 1);
  is(Op::kNot, 5, 5, 0);
  const auto fails = [](Op op, int64_t a, int64_t b, SizeError expected) {
    int64_t result = 0;
    CHECK(apply(op, a, b, &result) == expected);
  };
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  fails(Op::kAdd, kMost, 1, SizeError::kOverflow);
  fails(Op::kSubtract, kLeast, 1, SizeError::kOverflow);
  fails(Op::kMultiply, kMost, 2, SizeError::kOverflow);
  fails(Op::kFloorDivide, kLeast, -1, SizeError::kOverflow);
  fails(Op::kModulo, kLeast, -1, SizeError::kOverflow);
  fails(Op::kFloorDivide, 1, 0, SizeError::kZeroDivisor);
  fails(Op::kExactDivide, 7, 2, SizeError::kRest);
}
