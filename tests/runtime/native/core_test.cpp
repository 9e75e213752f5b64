#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <set>

#include "check.h"
#include "core/half.h"
#include "core/processor.h"
#include "core/sha256.h"
#include "host/strided_copy.h"
#include "image/select.h"
#include "memory/allocator.h"
#include "shims/table.h"

using namespace etcuda;

TEST(sha256_known_answers) {
  CHECK_EQ(to_hex(sha256("", 0)),
           std::string("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
  CHECK_EQ(to_hex(sha256("abc", 3)),
           std::string("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
  const std::string million(1000000, 'a');
  CHECK_EQ(to_hex(sha256(million.data(), million.size())),
           std::string("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
}

namespace {

// Reference by search: the representable neighbour that is nearest, ties to an even code.
template <typename Half>
void check_rounding(float value) {
  const Half got(value);
  if (std::isnan(value)) {
    CHECK(std::isnan(static_cast<float>(got)));
    return;
  }
  const double back = static_cast<double>(static_cast<float>(got));
  const double error = std::abs(back - value);
  for (const int step : {-1, 1}) {
    Half other;
    other.bits = static_cast<uint16_t>(got.bits + step);
    const auto neighbour = static_cast<double>(static_cast<float>(other));
    if (!std::isfinite(neighbour) || !std::isfinite(back)) continue;
    const double distance = std::abs(neighbour - value);
    CHECK(error <= distance);
    if (error == distance && error != 0) CHECK_EQ(got.bits & 1, 0);
  }
}

}  // namespace

TEST(half_round_trip_and_rounding) {
  for (uint32_t code = 0; code < 65536; ++code) {
    Float16 half;
    half.bits = static_cast<uint16_t>(code);
    const auto wide = static_cast<float>(half);
    if (!std::isnan(wide)) CHECK_EQ(Float16(wide).bits, half.bits);
    BFloat16 brain;
    brain.bits = static_cast<uint16_t>(code);
    const auto wider = static_cast<float>(brain);
    if (!std::isnan(wider)) CHECK_EQ(BFloat16(wider).bits, brain.bits);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const float value = bits_to_float(random());
    check_rounding<BFloat16>(value);
    check_rounding<Float16>(static_cast<float>(
        std::ldexp(static_cast<double>(random()) / 4294967296.0, static_cast<int>(random() % 44) - 28)));
  }
  CHECK_EQ(Float16(65520.0f).bits, 0x7c00);
  CHECK_EQ(Float16(65519.0f).bits, 0x7bff);
  CHECK_EQ(Float16(-1e9f).bits, 0xfc00);
}

TEST(strided_copy_matches_a_plain_loop) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    const int64_t rank = static_cast<int64_t>(random() % 5);
    int64_t sizes[5], to[5], from[5];
    int64_t to_step = 1, from_step = 1, count = 1;
    std::vector<int> order;
    for (int i = 0; i < rank; ++i)
      order.insert(order.begin() + static_cast<long>(random() % (order.size() + 1)), i);
    for (int64_t i = 0; i < rank; ++i) sizes[i] = 1 + static_cast<int64_t>(random() % 4);
    for (int64_t i = rank; i-- > 0;) {
      to[i] = to_step;
      to_step *= sizes[i] + static_cast<int64_t>(random() % 2);
      count *= sizes[i];
    }
    for (const int i : order) {
      from[i] = from_step;
      from_step *= sizes[i];
    }
    std::vector<int32_t> source(static_cast<size_t>(from_step)), target(static_cast<size_t>(to_step), -7);
    for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<int32_t>(i);
    strided_copy(rank, sizes, {target.data(), to, kInt32}, {source.data(), from, kInt32});
    std::vector<int32_t> expected(target.size(), -7);
    std::vector<double> converted(target.size(), -7);
    strided_copy(rank, sizes, {converted.data(), to, kFloat64}, {source.data(), from, kInt32});
    for (int64_t n = 0; n < count; ++n) {
      int64_t rest = n, at_to = 0, at_from = 0;
      for (int64_t i = rank; i-- > 0;) {
        at_to += rest % sizes[i] * to[i];
        at_from += rest % sizes[i] * from[i];
        rest /= sizes[i];
      }
      expected[static_cast<size_t>(at_to)] = source[static_cast<size_t>(at_from)];
    }
    CHECK(target == expected);
    for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(converted[i], static_cast<double>(expected[i]));
  }
}

TEST(convert_scalar_saturates_and_keeps_truth) {
  const double large = 1e30, negative = -3.7, not_a_number = std::nan("");
  int64_t integer = 0;
  convert_scalar(&integer, kInt64, &large, kFloat64);
  CHECK_EQ(integer, INT64_MAX);
  convert_scalar(&integer, kInt64, &negative, kFloat64);
  CHECK_EQ(integer, -3);
  convert_scalar(&integer, kInt64, &not_a_number, kFloat64);
  CHECK_EQ(integer, 0);
  const double half = 0.5;
  uint8_t truth = 9;
  convert_scalar(&truth, kBool, &half, kFloat64);
  CHECK_EQ(static_cast<int>(truth), 1);
  const uint64_t wide = UINT64_MAX;
  double real = 0;
  convert_scalar(&real, kFloat64, &wide, kUInt64);
  CHECK_EQ(real, 18446744073709551615.0);
}

namespace {

// Hands out ever larger numbers as addresses; remembers what is in use.
class CountingAllocator final : public CachingAllocator {
 public:
  CountingAllocator() : CachingAllocator(512) {}
  int live = 0;
  int synchronizations = 0;

 protected:
  void* system_allocate(size_t) override {
    ++live;
    return reinterpret_cast<void*>(next_ += 4096);
  }
  void system_free(void*) noexcept override { --live; }
  void system_synchronize() override { ++synchronizations; }
  const char* where() const override { return "the test"; }

 private:
  uintptr_t next_ = 4096;
};

}  // namespace

#if !defined(__SANITIZE_ADDRESS__)
TEST(allocator_reuses_by_size_and_stream) {
  CountingAllocator allocator;
  StreamOrder first, second;
  const Block a = allocator.allocate(1000, &first);
  allocator.deallocate(a);
  const Block again = allocator.allocate(900, &first);
  CHECK(again.data == a.data);
  allocator.deallocate(again);
  const Block other = allocator.allocate(1000, &second);
  CHECK(other.data != a.data);  // the first stream may still use it
  first.mark_synchronized();
  const Block idle = allocator.allocate(1000, &second);
  CHECK(idle.data == a.data);
  CHECK_EQ(allocator.stats().allocated, uint64_t{2048});
  CHECK_EQ(allocator.stats().calls, uint64_t{2});
  allocator.deallocate(other);
  allocator.deallocate(idle);
  allocator.retire(&second);
  CHECK(allocator.allocate(1000, &first).data != nullptr);
  CHECK_EQ(allocator.stats().calls, uint64_t{2});
  CHECK_EQ(allocator.stats().peak, uint64_t{2048});
}

TEST(allocator_empties_its_cache_before_it_gives_up) {
  CountingAllocator allocator;
  allocator.set_limit(10000);
  const Block a = allocator.allocate(8192);
  CHECK_FAILS(MemoryAllocationFailed, "out of memory on the test", allocator.allocate(4096));
  allocator.deallocate(a);
  CHECK_EQ(allocator.stats().reserved, uint64_t{8192});
  const Block b = allocator.allocate(4096);
  CHECK(b.data != nullptr);
  CHECK_EQ(allocator.live, 1);
  CHECK_EQ(allocator.stats().reserved, uint64_t{4096});
  allocator.deallocate(b);
  allocator.empty_cache();
  CHECK_EQ(allocator.live, 0);
  CHECK_EQ(allocator.stats().reserved, uint64_t{0});
  CHECK_EQ(allocator.synchronizations, 3);
}

TEST(allocator_gives_blocks_that_stay_no_more_than_they_ask_for) {
  CountingAllocator allocator;
  const size_t nbytes = (size_t{1} << 20) + 1;
  const Block shared = allocator.allocate(nbytes);
  CHECK_EQ(shared.nbytes, (size_t{1} << 20) + (size_t{1} << 17));
  const Block kept = allocator.allocate(nbytes, nullptr, BlockSize::kExact);
  CHECK(kept.nbytes >= nbytes && kept.nbytes < nbytes + 4096);
  allocator.deallocate(kept);
  const Block again = allocator.allocate(nbytes, nullptr, BlockSize::kExact);
  CHECK(again.data == kept.data);
  allocator.deallocate(again);
  allocator.deallocate(shared);
}
#endif

TEST(allocator_refuses_senseless_sizes) {
  CountingAllocator allocator;
  CHECK(allocator.allocate(0).data == nullptr);
  CHECK_FAILS(MemoryAllocationFailed, "not sensible", allocator.allocate(SIZE_MAX - 5));
}

namespace {

ImageSpec image(const char* target, DeviceType device, int capability, CodeKind kind, const char* isa = "") {
  ImageSpec spec{};
  spec.target = target;
  spec.device = device;
  spec.compute_capability = capability;
  spec.code_kind = kind;
  spec.machine = "x86_64";
  spec.isa = isa;
  return spec;
}

MachineSpec gpu(int capability) {
  MachineSpec machine;
  machine.has_gpu = true;
  machine.capability = capability;
  machine.shared_memory = capability == 86 || capability == 89 ? 101376 : 166912;
  machine.gpu_name = "Test GPU";
  return machine;
}

}  // namespace

TEST(select_prefers_the_closest_image) {
  const std::vector<ImageSpec> images = {
      image("host", kHost, 0, CodeKind::kNative), image("sm_80_ptx", kCuda, 80, CodeKind::kPtx),
      image("sm_80", kCuda, 80, CodeKind::kCubin), image("sm_86", kCuda, 86, CodeKind::kCubin),
      image("sm_90", kCuda, 90, CodeKind::kCubin)};
  CHECK_EQ(select_image(images, gpu(80)).target, std::string("sm_80"));
  CHECK_EQ(select_image(images, gpu(89)).target, std::string("sm_86"));
  CHECK_EQ(select_image(images, gpu(90)).target, std::string("sm_90"));
  CHECK_EQ(select_image(images, gpu(100)).target, std::string("sm_80_ptx"));
  CHECK_EQ(select_image(images, gpu(75)).target, std::string("host"));
  CHECK_EQ(select_image(images, MachineSpec{}).target, std::string("host"));
}

TEST(select_leaves_code_that_wants_more_shared_memory_than_a_block_may_have) {
  std::vector<ImageSpec> images = {image("sm_80", kCuda, 80, CodeKind::kCubin),
                                   image("sm_80", kCuda, 80, CodeKind::kCubin)};
  images[1].part = 1;
  images[1].shared_memory = 101376;
  CHECK(&select_image(images, gpu(86)) == &images[0]);
  // One kernel of any part is enough.
  images[1].shared_memory = 139264;
  images[1].largest_kernel = "attention_tiled_0";
  CHECK(&select_image(images, gpu(80)) == &images[0]);
  for (const char* words : {"kernel attention_tiled_0 of the code for sm_80 needs 139264 bytes",
                            "compute capability 8.6 (sm_86), has 101376",
                            "Export the model with target=\"sm_86\", or with target=\"portable\""}) {
    CHECK_FAILS(NotSupported, words, select_image(images, gpu(86)));
  }
  // What fits is taken, though the other were closer.
  images.push_back(image("portable", kCuda, 80, CodeKind::kPtx));
  images[2].shared_memory = 101376;
  CHECK(&select_image(images, gpu(89)) == &images[2]);
  CHECK(&select_image(images, gpu(80)) == &images[0]);
}

TEST(select_says_what_is_missing) {
  const std::vector<ImageSpec> images = {image("sm_90", kCuda, 90, CodeKind::kCubin)};
  MachineSpec none;
  none.no_gpu_reason = "no driver here";
  CHECK_FAILS(NotSupported, "no driver here", select_image(images, none));
  CHECK_FAILS(NotSupported, "export it with target=\"host\"", select_image(images, none));
  CHECK_FAILS(NotSupported, "compute capability 8.0 (sm_80)", select_image(images, gpu(80)));
  const std::vector<ImageSpec> future = {image("host", kHost, 0, CodeKind::kNative, "x86-64-v9")};
  CHECK_FAILS(NotSupported, "x86-64-v9", select_image(future, none));
  std::vector<ImageSpec> foreign = {image("host", kHost, 0, CodeKind::kNative)};
  foreign[0].machine = "aarch64";
  CHECK_FAILS(NotSupported, "compiled for host", select_image(foreign, none));
}

TEST(shims_are_found_by_name) {
  size_t count = 0;
  const char* const* names = shim_names(&count);
  CHECK(count > 100);
  for (size_t i = 0; i < count; ++i) {
    CHECK(find_shim(names[i]) != nullptr);
    if (i > 0) CHECK(std::strcmp(names[i - 1], names[i]) < 0);
  }
  CHECK(find_shim("aoti_torch_no_such_function") == nullptr);
}

// The kernel's list of what the processor has.
TEST(processor_levels_match_what_linux_reports) {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line) && line.compare(0, 5, "flags") != 0) {
  }
  std::istringstream words(line.substr(line.find(':') + 1));
  std::set<std::string> flags;
  for (std::string word; words >> word;) flags.insert(word);
  const auto has_all = [&](const std::vector<const char*>& names) {
    for (const char* name : names) {
      if (flags.count(name) == 0) return false;
    }
    return true;
  };
  const bool products = has_all({"avx2", "fma", "f16c"});
  const bool v2 = has_all({"sse4_2", "popcnt"});
  const bool v3 = v2 && products && has_all({"bmi1", "bmi2", "abm", "movbe"});
  const bool v4 = v3 && has_all({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"});
  CHECK(flags.count("fpu") == 1);
  CHECK(processor_has("") && processor_has("x86-64"));
  CHECK_EQ(processor_has_avx2_fma_f16c(), products);
  CHECK_EQ(processor_has("x86-64-v2"), v2);
  CHECK_EQ(processor_has("x86-64-v3"), v3);
  CHECK_EQ(processor_has("x86-64-v4"), v4);
  CHECK(!processor_has("x86-64-v5"));
}
