// Weights against their digests: what is compared, when, and what is shared.
#include "api.h"
#include "program.h"
#include "weights/verify.h"

using namespace etcuda_test;

namespace {

// Puts back the default however a test ends.
struct Verification {
  explicit Verification(bool enabled) { etcuda::set_verify_weights(enabled); }
  ~Verification() { etcuda::set_verify_weights(true); }
};

Bytes flipped(Bytes bytes) {
  bytes[bytes.size() / 2] ^= 0x40;
  return bytes;
}

etcuda::WeightCheck check_of(const std::string& name, const std::shared_ptr<Bytes>& bytes,
                             const etcuda::Digest& expected) {
  return {name, expected, bytes->data(), bytes->size(), bytes, nullptr, nullptr};
}

std::shared_ptr<Bytes> filled(size_t nbytes, uint8_t value) {
  return std::make_shared<Bytes>(nbytes, value);
}

}  // namespace

TEST(a_flipped_bit_in_a_weight_is_found) {
  const BlobRecipe recipe;
  for (const bool is_misaligned : {false, true}) {
    MemoryDataMap data(recipe);
    data.add(key_of(recipe.weight), flipped(recipe.weight));
    if (is_misaligned) data.misalign(key_of(recipe.weight));
    Loaded damaged(recipe.build(), &data);
    CHECK_ERROR(damaged.error, InvalidExternalData,
                "the bytes of layer.weight are damaged: expected SHA-256");
    CHECK(etcuda::last_reported_error().find(key_of(recipe.weight).substr(9, 12) + "..., got ") !=
          std::string::npos);
    CHECK(etcuda::last_reported_error().find("export the model again") != std::string::npos);
    data.add(key_of(recipe.weight), recipe.weight);
  }
  const MemoryDataMap whole(recipe);
  Loaded delegate(recipe.build(), &whole);
  CHECK_VALUES(delegate.run({1, 1}), {1, 2});
}

TEST(a_flipped_bit_in_a_states_initial_content_is_found) {
  BlobRecipe recipe;
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  MemoryDataMap data(recipe);
  data.add(key_of(recipe.state), flipped(recipe.state));
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidExternalData,
              "the bytes of layer.cache are damaged");
  data.add(key_of(recipe.weight), flipped(recipe.weight));
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidExternalData, "1 more weights are damaged too");
  const Verification off(false);
  CHECK(Loaded(recipe.build(), &data).error == Error::Ok);
}

TEST(verification_can_be_switched_off) {
  const BlobRecipe recipe;
  MemoryDataMap data(recipe);
  data.add(key_of(recipe.weight), flipped(recipe.weight));
  const Verification off(false);
  CHECK(Loaded(recipe.build(), &data).error == Error::Ok);
  etcuda_set_verify_weights(1);
  CHECK(Loaded(recipe.build(), &data).error != Error::Ok);
  etcuda_set_verify_weights(0);
  CHECK(Loaded(recipe.build(), &data).error == Error::Ok);
}

TEST(unverified_weights_are_not_shared_with_a_program_that_wants_verification) {
  BlobRecipe recipe;
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  const Bytes blob = recipe.build();
  MemoryDataMap data(recipe), misaligned(recipe);
  misaligned.add(key_of(recipe.weight), flipped(recipe.weight));
  misaligned.misalign(key_of(recipe.weight));
  const Verification off(false);
  Loaded in_place(blob, &data), copied(blob, &misaligned);
  CHECK(in_place.error == Error::Ok);
  CHECK(copied.error == Error::Ok);
  etcuda::set_verify_weights(true);
  // The copy belongs to the process and is found by its digest: it is compared and refused, whose program is
  // loaded does not matter.
  CHECK_ERROR(Loaded(blob, &data).error, InvalidExternalData, "layer.weight");
  // Once more: the failure left nothing that counts as verified.
  CHECK_ERROR(Loaded(blob, &misaligned).error, InvalidExternalData, "layer.weight");
  CHECK_ERROR(Loaded(blob, &misaligned).error, InvalidExternalData, "layer.weight");
  CHECK(Loaded(blob, &data).error == Error::Ok);
  CHECK_VALUES(copied.run({0}), {10});
}

TEST(a_state_that_was_not_verified_is_when_it_is_shared) {
  BlobRecipe recipe;
  recipe.state = bytes_of({10, 20, 30, 40, 50, 60, 70, 80});
  MemoryDataMap data(recipe);
  data.add(key_of(recipe.state), flipped(recipe.state));
  const Verification off(false);
  Loaded first(recipe.build(), &data);
  CHECK(first.error == Error::Ok);
  etcuda::set_verify_weights(true);
  CHECK_ERROR(Loaded(recipe.build(), &data).error, InvalidExternalData, "layer.cache");
  etcuda::set_verify_weights(false);
  CHECK(Loaded(recipe.build(), &data).error == Error::Ok);
}

TEST(many_weights_are_hashed_and_the_first_damaged_one_is_named) {
  std::vector<std::shared_ptr<Bytes>> weights;
  std::vector<etcuda::Digest> digests;
  // Some that start threads, some of no block at all.
  for (int i = 0; i < 40; ++i) {
    const size_t nbytes =
        i % 4 == 0 ? (size_t{3} << 20) + static_cast<size_t>(i) : static_cast<size_t>(i * 17);
    weights.push_back(filled(nbytes, static_cast<uint8_t>(i)));
    digests.push_back(etcuda::sha256(weights.back()->data(), nbytes));
  }
  for (const int damaged : {-1, 0, 20, 39}) {
    etcuda::WeightChecker checker;
    for (int i = 0; i < 40; ++i) {
      checker.make_room();
      const auto place = static_cast<size_t>(i);
      etcuda::Digest expected = digests[place];
      if (damaged >= 0 && i >= damaged) expected[31] ^= 1;
      checker.add(check_of("weight " + std::to_string(i), weights[place], expected));
    }
    if (damaged < 0) {
      checker.finish();
    } else {
      CHECK_FAILS(InvalidExternalData, ("weight " + std::to_string(damaged) + " are damaged").c_str(),
                  checker.finish());
    }
  }
  for (const auto& weight : weights) CHECK_EQ(weight.use_count(), 1);
}

TEST(buffers_do_not_pile_up) {
  const size_t nbytes = size_t{32} << 20, room = size_t{256} << 20;
  const auto first = filled(nbytes, 1);
  const etcuda::Digest digest = etcuda::sha256(first->data(), nbytes);
  std::vector<std::weak_ptr<Bytes>> alive;
  etcuda::WeightChecker checker(nullptr, room);
  for (int i = 0; i < 24; ++i) {
    checker.make_room();
    size_t held = 0;
    for (const auto& each : alive) held += each.expired() ? 0 : nbytes;
    // The bound, and one more that was being added.
    CHECK(held <= room + nbytes);
    const auto bytes = filled(nbytes, 1);
    alive.push_back(bytes);
    checker.add(check_of("w", bytes, digest));
  }
  checker.finish();
}

TEST(hashing_that_is_given_up_lets_go_of_everything) {
  const auto bytes = filled(size_t{40} << 20, 3);
  {
    etcuda::WeightChecker checker;
    for (int i = 0; i < 8; ++i) checker.add(check_of("w", bytes, etcuda::Digest{}));
  }
  CHECK_EQ(bytes.use_count(), 1);
}
