// Weights on their way to a GPU, by several threads, with the fake driver.
#include <sys/mman.h>

#include <atomic>
#include <cstdio>

#include "core/failure.h"
#include "cuda/stream.h"
#include "cuda_counts.h"
#include "memory/allocator.h"
#include "program.h"
#include "weights/pool.h"
#include "weights/verify.h"

using namespace etcuda_test;

namespace {

uint64_t allocated() {
  return etcuda::cuda_allocator(0).stats().allocated;
}

Bytes some_bytes(size_t nbytes, size_t seed) {
  Bytes bytes(nbytes);
  for (size_t i = 0; i < nbytes; ++i) bytes[i] = static_cast<uint8_t>((i * 31 + seed * 7) ^ (i >> 9));
  return bytes;
}

// A program of these weights, in this order.
struct Weights {
  std::vector<Bytes> values;
  etcuda::BlobSpec blob;
  MemoryDataMap data;

  void add(const Bytes& bytes, const Bytes& stored) {
    values.push_back(bytes);
    etcuda::StorageSpec spec{};
    spec.nbytes = bytes.size();
    spec.data_key = key_of(bytes);
    spec.sha256 = etcuda::sha256(bytes.data(), bytes.size());
    etcuda::ConstantSpec constant{};
    constant.fqn = "weight " + std::to_string(blob.storages.size());
    constant.storage = static_cast<uint32_t>(blob.storages.size());
    constant.dtype = etcuda::kUInt8;
    blob.storages.push_back(spec);
    blob.constants.push_back(constant);
    data.add(spec.data_key, stored);
  }
  void add(const Bytes& bytes) { add(bytes, bytes); }

  std::vector<etcuda::StoragePtr> load() {
    etcuda::Stream stream(0);
    const etcuda::StreamScope scope(stream);
    return etcuda::load_storages(blob, &data, {etcuda::kCuda, 0, &stream}).storages;
  }
};

// Of sizes around a block of the hash, a step and what starts threads.
Weights many() {
  constexpr size_t kStep = size_t{1} << 20;
  Weights weights;
  for (const size_t nbytes : {size_t{1}, size_t{63}, size_t{64}, size_t{65}, kStep - 1, kStep, kStep + 65,
                              3 * kStep + 17, 24 * kStep + 5}) {
    for (size_t seed = 0; seed < 3; ++seed) weights.add(some_bytes(nbytes, seed + nbytes));
  }
  return weights;
}

void check_equal_bytes(const etcuda::StoragePtr& storage, const Bytes& expected) {
  CHECK_EQ(storage->nbytes, expected.size());
  // Memory of the fake device is the host's.
  CHECK(std::memcmp(storage->data, expected.data(), expected.size()) == 0);
}

}  // namespace

TEST(cuda_every_byte_of_many_weights_arrives) {
  Weights weights = many();
  for (const bool verifies : {true, false}) {
    etcuda::set_verify_weights(verifies);
    const auto storages = weights.load();
    etcuda::set_verify_weights(true);
    CHECK_EQ(storages.size(), weights.values.size());
    for (size_t i = 0; i < storages.size(); ++i) check_equal_bytes(storages[i], weights.values[i]);
  }
  CHECK_EQ(allocated(), uint64_t{0});
}

TEST(cuda_equal_weights_of_a_program_are_one) {
  Weights weights;
  const Bytes bytes = some_bytes(5000, 1);
  for (int i = 0; i < 3; ++i) weights.add(bytes);
  weights.add(some_bytes(5000, 2));
  const auto storages = weights.load();
  CHECK(storages[0] == storages[1] && storages[0] == storages[2] && storages[0] != storages[3]);
  check_equal_bytes(storages[2], bytes);
  // Another program finds it, and reads nothing.
  weights.data.remove(key_of(bytes));
  CHECK(weights.load()[1] == storages[0]);
}

TEST(cuda_damaged_weights_among_many_are_named_and_leave_nothing) {
  Weights weights = many();
  for (const size_t place : {size_t{4}, size_t{25}}) {
    Bytes& bytes = weights.values[place];
    Bytes damaged = bytes;
    damaged.back() ^= 0x20;
    weights.data.add(key_of(bytes), damaged);
  }
  CHECK_FAILS(InvalidExternalData, "the bytes of weight 4 are damaged", weights.load());
  CHECK_FAILS(InvalidExternalData, "1 more weights are damaged too", weights.load());
  CHECK_EQ(allocated(), uint64_t{0});
}

TEST(cuda_a_weight_that_is_missing_or_of_another_size_leaves_nothing) {
  Weights weights = many();
  const Bytes last = weights.values.back();
  weights.data.remove(key_of(last));
  CHECK_FAILS(NotFound, "the weights of weight 26 (key etcuda/w/", weights.load());
  weights.data.add(key_of(last), some_bytes(last.size() - 1, 0));
  CHECK_FAILS(InvalidExternalData, "the weights of weight 26 (key etcuda/w/", weights.load());
  CHECK_EQ(allocated(), uint64_t{0});
  // No memory is asked for that no stored bytes prove.
  weights.blob.storages.back().nbytes = uint64_t{1} << 50;
  CHECK_FAILS(InvalidExternalData, "should have 1125899906842624 bytes", weights.load());
  CHECK_EQ(allocated(), uint64_t{0});
}

TEST(cuda_a_gpu_that_is_full_says_so) {
  struct Limit {
    explicit Limit(uint64_t nbytes) { etcuda::cuda_allocator(0).set_limit(nbytes); }
    ~Limit() { etcuda::cuda_allocator(0).set_limit(0); }
  };
  Weights weights;
  for (size_t i = 0; i < 20; ++i) weights.add(some_bytes(size_t{4} << 20, i));
  {
    const Limit limit(uint64_t{40} << 20);
    CHECK_FAILS(MemoryAllocationFailed, "out of memory on cuda:0", weights.load());
    CHECK_EQ(allocated(), uint64_t{0});
  }
  CHECK_EQ(weights.load().size(), size_t{20});
}

TEST(cuda_fetched_bytes_do_not_pile_up) {
  constexpr size_t kBytes = size_t{8} << 20, kRoom = size_t{20} << 20;
  const Bytes bytes = some_bytes(kBytes, 3);
  const etcuda::Digest digest = etcuda::sha256(bytes.data(), kBytes);
  etcuda::Stream stream(0);
  const auto target = etcuda::allocate_persistent_storage(kBytes, etcuda::kCuda, 0);
  std::atomic<size_t> held{0}, most{0}, fetched{0};
  {
    etcuda::WeightChecker checker(&stream, kRoom);
    for (int i = 0; i < 30; ++i) {
      const auto fetch = [&](etcuda::WeightCheck& check) {
        ++fetched;
        const size_t now = held += kBytes;
        size_t before = most;
        while (now > before && !most.compare_exchange_weak(before, now)) {
        }
        check.owner = std::shared_ptr<Bytes>(new Bytes(bytes), [&](Bytes* made) {
          held -= kBytes;
          delete made;
        });
        check.data = std::static_pointer_cast<const Bytes>(check.owner)->data();
        check.destination = target->data;
      };
      checker.add({"w", digest, nullptr, kBytes, nullptr, nullptr, fetch});
    }
    checker.finish();
    CHECK_EQ(held.load(), size_t{0});
  }
  CHECK_EQ(fetched.load(), size_t{30});
  CHECK(most >= kBytes && most <= kRoom);
}

TEST(cuda_pages_of_a_mapped_file_take_no_room) {
  constexpr size_t kBytes = size_t{1} << 20;
  const Bytes bytes = some_bytes(kBytes, 5);
  const etcuda::Digest digest = etcuda::sha256(bytes.data(), kBytes);
  std::FILE* file = std::tmpfile();
  CHECK(file != nullptr && std::fwrite(bytes.data(), 1, kBytes, file) == kBytes && std::fflush(file) == 0);
  void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fileno(file), 0);
  CHECK(mapped != MAP_FAILED);
  etcuda::Stream stream(0);
  for (const bool is_mapped : {false, true}) {
    std::atomic<size_t> held{0}, most{0};
    // Room for one.
    etcuda::WeightChecker checker(&stream, 1);
    for (int i = 0; i < 30; ++i) {
      checker.add({"w", digest, nullptr, kBytes, nullptr, nullptr, [&](etcuda::WeightCheck& check) {
                     const size_t now = ++held;
                     size_t before = most;
                     while (now > before && !most.compare_exchange_weak(before, now)) {
                     }
                     check.owner = std::shared_ptr<int>(new int, [&](int* made) {
                       --held;
                       delete made;
                     });
                     check.data = is_mapped ? mapped : bytes.data();
                   }});
    }
    checker.finish();
    CHECK_EQ(held.load(), size_t{0});
    // A thread takes two at a time where there is room for both.
    CHECK(is_mapped ? most >= 2 : most == 1);
  }
  munmap(mapped, kBytes);
  std::fclose(file);
}

TEST(cuda_the_first_of_the_damaged_weights_is_named_in_whatever_order_they_are_loaded) {
  Weights weights;
  for (const size_t nbytes : {100, 5000, 70, 9000}) weights.add(some_bytes(nbytes, nbytes));
  for (const size_t place : {size_t{1}, size_t{2}, size_t{3}}) {
    Bytes damaged = weights.values[place];
    damaged[7] ^= 1;
    weights.data.add(key_of(weights.values[place]), damaged);
  }
  CHECK_FAILS(InvalidExternalData, "the bytes of weight 1 are damaged", weights.load());
  CHECK_FAILS(InvalidExternalData, "2 more weights are damaged too", weights.load());
}

TEST(cuda_what_fails_while_it_is_fetched_is_thrown_once_all_has_stopped) {
  etcuda::Stream stream(0);
  etcuda::WeightChecker checker(&stream);
  const Bytes bytes = some_bytes(16, 1);
  for (int i = 0; i < 100; ++i) {
    checker.add({"w", std::nullopt, nullptr, 16, nullptr, nullptr, [&, i](etcuda::WeightCheck& check) {
                   if (i == 70) etcuda::fail(etcuda::ErrorCode::AccessFailed, "the disk is gone.");
                   check.data = bytes.data();
                 }});
  }
  CHECK_FAILS(AccessFailed, "the disk is gone", checker.finish());
}
