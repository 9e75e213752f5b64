// Delegates in parts: which steps are refused, and which code belongs together.
#include "image/select.h"
#include "program.h"

using namespace etcuda_test;
using etcuda::CodeKind;
using etcuda::images_of_parts;
using etcuda::ImageSpec;
using etcuda::kCuda;
using etcuda::kHost;

namespace {

using Edit = void (*)(etcuda::schema::DelegateT&);

Error load(Edit edit) {
  BlobRecipe recipe;
  recipe.edit = edit;
  const MemoryDataMap data(recipe);
  return Loaded(recipe.build(), &data).error;
}

// Values: the input 0, the constants 1 and 2, then what steps make.
void add_step(etcuda::schema::DelegateT& root, uint32_t part, std::vector<uint32_t> inputs,
              std::vector<uint32_t> outputs) {
  root.format_version = 3;
  auto step = std::make_unique<etcuda::schema::StepT>();
  step->part = part;
  step->inputs = std::move(inputs);
  step->outputs = std::move(outputs);
  root.steps.push_back(std::move(step));
  root.results = {3};
}

ImageSpec image(const char* target, etcuda::DeviceType device, int capability, uint32_t part) {
  ImageSpec spec;
  spec.target = target;
  spec.device = device;
  spec.compute_capability = capability;
  spec.code_kind = device == kHost ? CodeKind::kNative : CodeKind::kCubin;
  spec.machine = "x86_64";
  spec.part = part;
  return spec;
}

}  // namespace

TEST(steps_that_do_not_fit_are_refused) {
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { add_step(root, 0, {3}, {3}); }), InvalidProgram,
              "step 0 reads value 3 of 3");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { add_step(root, 0, {0}, {4}); }), InvalidProgram,
              "step 0 makes value 4, expected 3");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { add_step(root, 1, {0}, {3}); }), InvalidProgram,
              "step 0 calls part 1 of 1");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) {
                add_step(root, 0, {0}, {3});
                add_step(root, 0, {5}, {4});
              }),
              InvalidProgram, "step 1 reads value 5 of 4");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) {
                add_step(root, 0, {0}, {3});
                root.results = {};
              }),
              InvalidProgram, "there are 1 outputs and 0 results");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) {
                add_step(root, 0, {0}, {3});
                root.results = {9};
              }),
              InvalidProgram, "value 9 of 4 is a result");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { add_step(root, 0, {0}, {UINT32_MAX}); }),
              InvalidProgram, "value 3 of 3 is a result");
}

TEST(steps_and_the_format_go_together) {
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) {
                add_step(root, 0, {0}, {3});
                root.format_version = 2;
              }),
              InvalidProgram, "there are 1 steps in a description of format 2");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { root.format_version = 3; }), InvalidProgram,
              "there are 0 steps in a description of format 3");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { root.format_version = 4; }),
              DelegateInvalidCompatibility, "has format 4");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { root.results = {0}; }), InvalidProgram,
              "there are results without steps");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { root.images[0]->part = 1; }), InvalidProgram,
              "there are several parts and no steps");
}

TEST(parts_take_what_the_steps_give) {
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { add_step(root, 0, {0, 1}, {3}); }), InvalidProgram,
              "has 1 inputs and 1 outputs, the delegate's description 2 and 1");
  CHECK_ERROR(load([](etcuda::schema::DelegateT& root) { add_step(root, 0, {0}, {3}); }), InvalidProgram,
              "constants of its own");
}

TEST(parts_are_for_one_target) {
  const std::vector<ImageSpec> images = {image("sm_80", kCuda, 80, 0), image("sm_80", kCuda, 80, 1),
                                         image("host", kHost, 0, 1), image("host", kHost, 0, 0)};
  const auto found = images_of_parts(images, images[3]);
  CHECK_EQ(found.size(), size_t{2});
  CHECK(found[0] == &images[3] && found[1] == &images[2]);
  CHECK(images_of_parts(images, images[0])[1] == &images[1]);
  const std::vector<ImageSpec> lacking = {image("sm_80", kCuda, 80, 1), image("host", kHost, 0, 0)};
  CHECK_FAILS(InvalidProgram, "the code for host lacks part 1 of 2", images_of_parts(lacking, lacking[1]));
}
