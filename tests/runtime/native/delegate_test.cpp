#include <dirent.h>
#include <link.h>

#include <fstream>

#include "api.h"
#include "program.h"

using namespace etcuda_test;

namespace {

uint64_t host_allocated() {
  EtcudaMemoryStats stats[8];
  etcuda_memory_stats(stats, 8);
  return stats[0].allocated;
}

// Restores the bound on host memory however a test ends.
struct HostLimit {
  explicit HostLimit(uint64_t nbytes) { etcuda_set_memory_limit(0, 0, nbytes); }
  ~HostLimit() { etcuda_set_memory_limit(0, 0, 0); }
};

}  // namespace

TEST(delegate_runs_and_keeps_state) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  CHECK_VALUES(delegate.run({1, 1, 1}), {1, 2, 3});
  CHECK_VALUES(delegate.run({1, 2, 3, 4}), {2, 6, 12, 16});
  CHECK_VALUES(delegate.run({}), {});
  CHECK_VALUES(delegate.run({0}), {2});
}

TEST(delegate_resets_state_to_its_initial_content) {
  BlobRecipe zeros;
  BlobRecipe full;
  full.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  const MemoryDataMap zero_data(zeros), full_data(full);
  Loaded first(zeros.build(), &zero_data), second(full.build(), &full_data);
  CHECK_VALUES(first.run({1, 1}), {1, 2});
  CHECK_VALUES(second.run({1, 1}), {11, 42});
  CHECK_VALUES(second.run({1, 1}), {12, 44});
  CHECK_EQ(etcuda_reset_state(), int64_t{2});
  CHECK_VALUES(first.run({1, 1}), {1, 2});
  CHECK_VALUES(second.run({1, 1}), {11, 42});
  executorch::runtime::BackendOptions<2> options;
  CHECK(options.set_option("reset_state", true) == Error::Ok);
  executorch::runtime::BackendOptionContext context;
  CHECK(backend().set_option(context, options.view()) == Error::Ok);
  CHECK_VALUES(second.run({0}), {10});
  CHECK(options.set_option("no_such_option", true) == Error::Ok);
  CHECK_ERROR(backend().set_option(context, options.view()), InvalidArgument, "no_such_option");
}

TEST(state_is_shared_by_name_within_a_program) {
  const BlobRecipe recipe;
  BlobRecipe other_name;
  other_name.state_name = "another";
  const MemoryDataMap program(recipe), other_program(recipe);
  Loaded prefill(recipe.build(), &program), decode(recipe.build(), &program);
  Loaded apart(other_name.build(), &program), elsewhere(recipe.build(), &other_program);
  CHECK_VALUES(prefill.run({1, 1}), {1, 2});
  CHECK_VALUES(decode.run({1, 1}), {2, 4});
  CHECK_VALUES(prefill.run({1, 1}), {3, 6});
  CHECK_VALUES(apart.run({1, 1}), {1, 2});
  CHECK_VALUES(elsewhere.run({1, 1}), {1, 2});
}

TEST(state_of_another_size_is_refused) {
  const BlobRecipe recipe;
  BlobRecipe larger;
  larger.state_bytes = 64;
  const MemoryDataMap program(recipe);
  Loaded first(recipe.build(), &program), second(larger.build(), &program);
  CHECK_ERROR(second.error, InvalidProgram, "the state cache has 64 bytes in method forward but 32");
}

TEST(zeros_that_no_constant_uses_are_not_allocated) {
  BlobRecipe recipe;
  const MemoryDataMap program(recipe);
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.storages[1]->nbytes = uint64_t{8} << 30; };
  CHECK_ERROR(Loaded(recipe.build(), &program).error, InvalidProgram,
              "storage 1 is 8589934592 bytes of zeros, of which its constants use 32");
  recipe.edit = nullptr;
  CHECK(Loaded(recipe.build(), &program).error == Error::Ok);
}

TEST(constants_are_those_of_the_image) {
  BlobRecipe recipe;
  recipe.image = "image_sizes.so";
  const MemoryDataMap program(recipe);
  CHECK(Loaded(recipe.build(), &program).error == Error::Ok);
  // Before anything is allocated, whatever the description says.
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.storages[1]->nbytes = uint64_t{8} << 30;
    root.constants[1]->sizes = {int64_t{2} << 30};
  };
  CHECK_ERROR(
      Loaded(recipe.build(), &program).error, InvalidProgram,
      "constant layer.cache: the code image was made for 64 bytes of dtype 6, the delegate's description "
      "has 8589934592 bytes of dtype 6");
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.constants[0]->dtype = etcuda::schema::DType::int32;
  };
  CHECK_ERROR(Loaded(recipe.build(), &program).error, InvalidProgram,
              "constant layer.weight: the code image");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.constants[1]->name = "weight"; };
  CHECK_ERROR(Loaded(recipe.build(), &program).error, InvalidProgram, "the constant weight twice");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.constants[1]->name = "other"; };
  CHECK_ERROR(Loaded(recipe.build(), &program).error, InvalidProgram, "does not have: state");
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.constants.push_back(std::make_unique<etcuda::schema::ConstantT>(*root.constants[0]));
    root.constants[2]->name = "third";
  };
  CHECK_ERROR(Loaded(recipe.build(), &program).error, InvalidProgram, "the code image does not know: third");
}

TEST(an_image_knows_its_description) {
  BlobRecipe recipe;
  recipe.image = "image_description.so";
  const MemoryDataMap program(recipe);
  CHECK_ERROR(Loaded(recipe.build(), &program).error, InvalidProgram,
              "not the one that the code image for host was made with: expected SHA-256 0000");
}

TEST(state_needs_the_program_key) {
  const BlobRecipe recipe;
  MemoryDataMap program(recipe);
  program.remove("etcuda/program");
  Loaded delegate(recipe.build(), &program);
  CHECK_ERROR(delegate.error, InvalidProgram, "etcuda/program");
}

TEST(state_goes_with_its_last_user) {
  const BlobRecipe recipe;
  const MemoryDataMap program(recipe);
  {
    Loaded delegate(recipe.build(), &program);
    CHECK_VALUES(delegate.run({5}), {5});
    CHECK_EQ(etcuda_reset_state(), int64_t{1});
    CHECK(host_allocated() >= 32);
  }
  CHECK_EQ(etcuda_reset_state(), int64_t{0});
  CHECK_EQ(host_allocated(), uint64_t{0});
  Loaded again(recipe.build(), &program);
  CHECK_VALUES(again.run({5}), {5});
}

TEST(weights_are_used_in_place_or_copied_if_misaligned) {
  const BlobRecipe recipe;
  MemoryDataMap aligned(recipe), misaligned(recipe);
  misaligned.misalign(key_of(recipe.weight));
  uint64_t in_place = 0;
  {
    Loaded delegate(recipe.build(), &aligned);
    in_place = host_allocated();
    CHECK_VALUES(delegate.run({1, 1}), {1, 2});
  }
  Loaded first(recipe.build(), &misaligned);
  const uint64_t copied = host_allocated();
  CHECK(copied >= in_place + recipe.weight.size());
  CHECK_VALUES(first.run({1, 1}), {1, 2});
  // A copy belongs to the process: another program with the same content shares it.
  MemoryDataMap other(recipe);
  other.misalign(key_of(recipe.weight));
  Loaded second(recipe.build(), &other);
  CHECK(host_allocated() <= copied + in_place);
  CHECK_VALUES(second.run({1, 1}), {1, 2});
}

TEST(weights_missing_or_wrong) {
  const BlobRecipe recipe;
  MemoryDataMap missing(recipe), wrong(recipe);
  missing.remove(key_of(recipe.weight));
  wrong.add(key_of(recipe.weight), Bytes(31, 0));
  CHECK_ERROR(Loaded(recipe.build(), &missing).error, NotFound, "layer.weight");
  CHECK_ERROR(Loaded(recipe.build(), &missing).error, NotFound, ".ptd");
  CHECK_ERROR(Loaded(recipe.build(), nullptr).error, NotFound, "data_path");
  CHECK_ERROR(Loaded(recipe.build(), &wrong).error, InvalidExternalData, "should have 32 bytes, got 31");
}

TEST(inputs_are_checked) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  using executorch::aten::ScalarType;
  TensorValue good = TensorValue::floats({1, 2}), out(ScalarType::Float, {8}, 4);
  TensorValue ints(ScalarType::Int, {2}, 4), matrix(ScalarType::Float, {2, 2}, 4),
      longer(ScalarType::Float, {9}, 4);
  EValue none, number(int64_t{3});
  CHECK_ERROR(delegate.execute({ints.value(), out.value()}), InvalidArgument,
              "input 0 (x): expected dtype float32, got int32");
  CHECK_ERROR(delegate.execute({matrix.value(), out.value()}), InvalidArgument,
              "expected 1 dimensions [0..8], got 2");
  CHECK_ERROR(delegate.execute({longer.value(), out.value()}), InvalidArgument,
              "dimension 0 has size 9, the model was exported for [0..8]");
  CHECK_ERROR(delegate.execute({&none, out.value()}), InvalidArgument, "got None");
  CHECK_ERROR(delegate.execute({&number, out.value()}), InvalidArgument, "got an int");
  CHECK_ERROR(delegate.execute({good.value()}), InvalidArgument, "and 1 outputs, got 1 arguments");
  CHECK_ERROR(delegate.execute({good.value(), &none}), InvalidProgram, "output 0 (y)");
  TensorValue small(ScalarType::Float, {1}, 4);
  CHECK(delegate.execute({good.value(), small.value()}) != Error::Ok);
  TensorValue wrong_output(ScalarType::Double, {8}, 8);
  CHECK_ERROR(delegate.execute({good.value(), wrong_output.value()}), InvalidArgument, "got float64 with 1");
  etcuda_reset_state();
  CHECK_VALUES(delegate.run({1, 1}), {1, 2});
}

TEST(ignored_arguments_are_skipped) {
  BlobRecipe recipe;
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.ignored_arguments = {0, 2}; };
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  EValue number(int64_t{3}), truth(true);
  TensorValue in = TensorValue::floats({1, 1}), out(executorch::aten::ScalarType::Float, {8}, 4);
  CHECK(delegate.execute({&number, in.value(), &truth, out.value()}) == Error::Ok);
  CHECK_VALUES(out.read(), {1, 2});
  CHECK_ERROR(delegate.execute({in.value(), out.value()}), InvalidArgument, "got 2 arguments");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.ignored_arguments = {2, 0}; };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram, "ignored argument 1");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.ignored_arguments = {2}; };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram, "ignored argument 0");
}

TEST(blobs_of_another_format_are_to_be_exported_again) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  for (const uint8_t version : {1, 3}) {
    Bytes blob = recipe.build();
    blob[7] = version;
    CHECK_ERROR(Loaded(blob, &data).error, DelegateInvalidCompatibility, "Export the model again");
  }
  BlobRecipe other;
  other.edit = [](etcuda::schema::DelegateT& root) { root.format_version = 1; };
  CHECK_ERROR(Loaded(other.build(), &data).error, DelegateInvalidCompatibility,
              "has format 1, this runtime reads format 2. Export the model again");
}

TEST(outputs_are_as_large_as_the_description_says) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  // The image returns one element more than its input has.
  TensorValue longer = TensorValue::floats({-106, 0, 0, 0}), out(executorch::aten::ScalarType::Float, {8}, 4);
  CHECK_ERROR(delegate.execute({longer.value(), out.value()}), Internal,
              "output 0 (y): dimension 0 has size 5, expected 4, which is n");
}

TEST(failures_of_the_image_are_reported_and_the_next_call_works) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  const auto fails = [&](float request, Error expected, const char* words) {
    TensorValue in = TensorValue::floats({request, 0}), out(executorch::aten::ScalarType::Float, {8}, 4);
    expect_error(delegate.execute({in.value(), out.value()}), expected, words, __FILE__, __LINE__);
    etcuda_reset_state();
    CHECK_VALUES(delegate.run({1, 1}), {1, 2});
  };
  const uint64_t before = host_allocated();
  fails(-101, Error::Internal, "gave no reason");
  fails(-102, Error::InvalidArgument, "the first element is forbidden");
  {
    const HostLimit limit(1 << 20);
    fails(-103, Error::MemoryAllocationFailed, "out of memory on the host");
  }
  fails(-104, Error::Internal, "expected dtype float32, got int32");
  fails(-107, Error::Internal, "gave no output 0 (y)");
  CHECK_EQ(host_allocated(), before);
}

TEST(the_images_own_words_are_reported) {
  BlobRecipe recipe;
  recipe.image = "image_last_error.so";
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  TensorValue in = TensorValue::floats({-101}), out(executorch::aten::ScalarType::Float, {8}, 4);
  CHECK_ERROR(delegate.execute({in.value(), out.value()}), Internal, "the image's own words");
}

TEST(outputs_may_be_strided) {
  const BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  Loaded delegate(recipe.build(), &data);
  CHECK_VALUES(delegate.run({-105, 1, 2}), {-105, 2, 6});
}

TEST(images_that_break_the_contract) {
  BlobRecipe recipe;
  const MemoryDataMap data(recipe);
  recipe.image = "image_missing_import.so";
  CHECK_ERROR(Loaded(recipe.build(), &data).error, DelegateInvalidCompatibility,
              "aoti_torch_from_the_future, aoti_torch_from_beyond");
  recipe.image = "image_wrong_abi.so";
  CHECK_ERROR(Loaded(recipe.build(), &data).error, DelegateInvalidCompatibility,
              "has ABI 2, this runtime has 1");
  recipe.image = "not_an_image.so";
  CHECK_ERROR(Loaded(recipe.build(), &data).error, DelegateInvalidCompatibility,
              "has no symbol etcuda_image_abi");
  recipe.image = "garbage.so";
  CHECK_ERROR(Loaded(recipe.build(), &data).error, DelegateInvalidCompatibility, "could not be loaded");
  recipe.image = "image.so";
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.images[0]->sha256[5] ^= 1; };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram, "the code image for host is damaged");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.constants[1]->name = "stat"; };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram,
              "constants that the delegate's description does not have: state");
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.inputs.push_back(std::make_unique<etcuda::schema::ValueT>(*root.inputs[0]));
  };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram, "1 inputs and 1 outputs");
}

TEST(a_gpu_program_without_a_gpu) {
  if (etcuda_gpu_available() != 0) return;
  BlobRecipe recipe;
  recipe.device = etcuda::schema::Device::cuda;
  const MemoryDataMap data(recipe);
  CHECK_ERROR(Loaded(recipe.build(), &data).error, NotSupported, "libcuda.so.1");
  CHECK(std::string(etcuda_gpu_unavailable_reason()).find("libcuda.so.1") != std::string::npos);
}

namespace {

size_t loaded_libraries() {
  size_t count = 0;
  dl_iterate_phdr(
      [](dl_phdr_info*, size_t, void* total) {
        ++*static_cast<size_t*>(total);
        return 0;
      },
      &count);
  return count;
}

size_t open_files() {
  size_t count = 0;
  DIR* directory = opendir("/proc/self/fd");
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

size_t resident_kilobytes() {
  std::ifstream status("/proc/self/statm");
  size_t total = 0, resident = 0;
  status >> total >> resident;
  return resident * 4;
}

}  // namespace

TEST(two_hundred_cycles_leave_nothing_behind) {
  BlobRecipe recipe;
  recipe.state = bytes_of({1, 2, 3, 4, 5, 6, 7, 8});
  const Bytes blob = recipe.build();
  const MemoryDataMap data(recipe);
  const auto cycle = [&] {
    Loaded first(blob, &data), second(blob, &data);
    CHECK_VALUES(first.run({1}), {2});
    CHECK_VALUES(second.run({1}), {3});
  };
  for (int i = 0; i < 20; ++i) cycle();
  const size_t libraries = loaded_libraries(), files = open_files(), resident = resident_kilobytes();
  for (int i = 0; i < 200; ++i) cycle();
  CHECK_EQ(loaded_libraries(), libraries);
  CHECK_EQ(open_files(), files);
  CHECK_EQ(host_allocated(), uint64_t{0});
#if !defined(__SANITIZE_ADDRESS__)
  CHECK(resident_kilobytes() < resident + 1024);
#else
  CHECK(resident > 0);
#endif
}
