// Weights on a GPU against their digests, with the fake driver.
#include "api.h"
#include "memory/allocator.h"
#include "program.h"
#include "weights/verify.h"

using namespace etcuda_test;

namespace {

struct Verification {
  explicit Verification(bool enabled) { etcuda::set_verify_weights(enabled); }
  ~Verification() { etcuda::set_verify_weights(true); }
};

Bytes flipped(Bytes bytes) {
  bytes[2] ^= 1;
  return bytes;
}

uint64_t allocated() {
  return etcuda::cuda_allocator(0).stats().allocated;
}

}  // namespace

TEST(cuda_a_flipped_bit_is_found) {
  BlobRecipe recipe = cuda_recipe();
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  MemoryDataMap data(recipe);
  data.add(key_of(recipe.weight), flipped(recipe.weight));
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidExternalData,
              "the bytes of layer.weight are damaged");
  data.add(key_of(recipe.weight), recipe.weight);
  data.add(key_of(recipe.state), flipped(recipe.state));
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidExternalData,
              "the bytes of layer.cache are damaged");
  CHECK_EQ(allocated(), uint64_t{0});
}

TEST(cuda_a_verified_weight_is_shared_without_reading_the_second_programs) {
  const BlobRecipe recipe = cuda_recipe();
  const MemoryDataMap data(recipe);
  MemoryDataMap without(recipe);
  without.remove(key_of(recipe.weight));
  Loaded first(recipe.build(), &data);
  Loaded second(recipe.build(), &without);
  CHECK(second.error == Error::Ok);
  CHECK_VALUES(second.run({1, 1}), {1, 2});
}

TEST(cuda_an_unverified_weight_is_not_shared_with_a_program_that_wants_verification) {
  BlobRecipe recipe = cuda_recipe();
  recipe.weight = bytes_of(std::vector<float>(1 << 16, 2.0f));
  recipe.state_bytes = recipe.weight.size();
  recipe.max_length = 1 << 16;
  const Bytes blob = recipe.build();
  const MemoryDataMap data(recipe);
  MemoryDataMap damaged(recipe);
  damaged.add(key_of(recipe.weight), flipped(recipe.weight));
  const Verification off(false);
  Loaded first(blob, &damaged);
  CHECK(first.error == Error::Ok);
  const uint64_t one = allocated();
  // Without verification they share.
  Loaded second(blob, &data);
  CHECK(allocated() < one + recipe.state_bytes + 4096);
  const uint64_t two = allocated();
  etcuda::set_verify_weights(true);
  Loaded third(blob, &data);
  CHECK(third.error == Error::Ok);
  CHECK(allocated() >= two + recipe.weight.size());
  // What is verified serves both kinds from now on.
  const uint64_t three = allocated();
  Loaded fourth(blob, &data);
  CHECK(allocated() < three + 4096);
  // Its own bytes need not be read: verified ones of the same digest are there.
  CHECK(Loaded(blob, &damaged).error == Error::Ok);
}
