// The sentence behind a failure: whose it is, how long it lasts, and what reaches the log.
#include <executorch/runtime/platform/log.h>
#include <executorch/runtime/platform/platform.h>

#include <thread>

#include "api.h"
#include "core/text.h"
#include "program.h"

using namespace etcuda_test;

namespace {

std::vector<std::string>& entries() {
  static std::vector<std::string> all;
  return all;
}

void record(et_timestamp_t, et_pal_log_level_t, const char*, const char*, size_t, const char* message,
            size_t length) {
  entries().emplace_back(message, length);
}

// A log of the program's own, installed after etcuda's runtime was loaded.
struct Recording {
  Recording() : before(*executorch::runtime::get_pal_impl()) {
    entries().clear();
    executorch::runtime::register_pal(executorch::runtime::PalImpl::create(record, __FILE__));
    etcuda::watch_executorch_log();
  }
  ~Recording() {
    before.init = nullptr;
    executorch::runtime::register_pal(before);
  }
  executorch::runtime::PalImpl before;
};

std::string last_error() {
  char text[512] = {};
  etcuda_last_error(text, sizeof(text));
  return text;
}

struct Failing {
  BlobRecipe recipe;
  MemoryDataMap data{recipe};
  Loaded delegate{recipe.build(), &data};

  void fail() {
    TensorValue wrong(executorch::aten::ScalarType::Int, {2}, 4);
    TensorValue out(executorch::aten::ScalarType::Float, {8}, 4);
    CHECK(delegate.execute({wrong.value(), out.value()}) != Error::Ok);
  }
};

}  // namespace

TEST(success_clears_the_last_error) {
  Failing failing;
  failing.fail();
  CHECK(last_error().find("expected dtype float32") != std::string::npos);
  // A question that asks nothing of the runtime leaves it.
  etcuda_gpu_available();
  CHECK(!last_error().empty());
  failing.delegate.run({1});
  CHECK_EQ(last_error(), std::string());
  failing.fail();
  CHECK_EQ(etcuda_empty_cache(), 0);
  CHECK_EQ(last_error(), std::string());
}

TEST(the_last_error_is_of_this_thread) {
  Failing failing;
  failing.fail();
  const std::string here = last_error();
  std::string there, after;
  std::thread([&] {
    there = last_error();
    Failing other;
    other.recipe.weight.clear();
    CHECK(Loaded(other.recipe.build(), nullptr).error != Error::Ok);
    after = last_error();
  }).join();
  CHECK_EQ(there, std::string());
  CHECK(after.find("data_path") != std::string::npos);
  CHECK_EQ(last_error(), here);
}

TEST(a_call_that_executorch_refuses_leaves_no_other_sentence) {
  Failing failing;
  failing.fail();
  const std::string ours = last_error();
  // What ExecuTorch logs as the same failure passes on.
  ET_LOG(Error, "CALL_DELEGATE execute failed at instruction 0: 0x12");
  CHECK_EQ(last_error(), ours);
  ET_LOG(Info, "not an error");
  CHECK_EQ(last_error(), ours);
  // The next call does not reach the delegate.
  ET_LOG(Error, "Input 0 has unexpected scalar type: expected Float but was Double.");
  CHECK_EQ(last_error(), std::string("Input 0 has unexpected scalar type: expected Float but was Double."));
  ET_LOG(Error, "KERNEL_CALL failed at instruction 0:0 in operator aten::add.out: 0x12");
  CHECK(last_error().find("unexpected scalar type") != std::string::npos);
  // Nor does this one, of which ExecuTorch says no more.
  ET_LOG(Error, "KERNEL_CALL failed at instruction 0:0 in operator aten::add.out: 0x12");
  CHECK(last_error().find("KERNEL_CALL") == 0);
  failing.delegate.run({1});
  CHECK_EQ(last_error(), std::string());
}

TEST(the_log_gets_printable_text_in_whole_characters) {
  const Recording recording;
  std::string long_name = "a";
  // Every cut of a long entry would fall into one of these.
  for (int i = 0; i < 300; ++i) long_name += "\xE2\x82\xAC";
  etcuda::report_error(long_name + " \xFF");
  ET_LOG(Error, "no key %s here", "\xFF\xFE");
  std::string joined;
  CHECK(entries().size() > 4);
  for (const std::string& entry : entries()) {
    CHECK_EQ(etcuda::printable(entry), entry);
    joined += entry;
  }
  CHECK(joined.find("\\xff") != std::string::npos);
  CHECK_EQ(entries().back(), std::string("no key \\xff\\xfe here"));
  CHECK_EQ(last_error(), std::string("no key \\xff\\xfe here"));
}

TEST(names_that_are_not_utf8_end_in_an_error) {
  const Recording recording;
  BlobRecipe recipe;
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.constants[0]->fqn = "layer.\xFF";
    root.storages[0]->data_key = "etcuda/w/\xC3\x28";
  };
  const MemoryDataMap data(recipe);
  CHECK_ERROR(Loaded(recipe.build(), &data).error, NotFound, "layer.\\xff (key etcuda/w/\\xc3()");
  recipe.edit = [](etcuda::schema::DelegateT& root) { root.constants[1]->name = "\xF0\x9F"; };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram, "state");
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.inputs[0]->name = "\xFF";
    root.inputs[0]->dim_order = {3};
  };
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidProgram, "(\\xff)");
  for (const std::string& entry : entries()) CHECK_EQ(etcuda::printable(entry), entry);
}
