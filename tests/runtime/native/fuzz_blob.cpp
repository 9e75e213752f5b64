// Loads mutated blobs: every one must end in an error or, if the mutation hit nothing that matters, in a
// delegate that loads; none may crash. Half of them get their hash made right again, so that the flatbuffer
// verifier and the checks behind it are reached.
//
// usage: fuzz_blob [count] [seed]
#include <cstdio>
#include <cstdlib>
#include <random>

#include "api.h"
#include "program.h"

using namespace etcuda_test;

namespace {

using Random = std::mt19937_64;

size_t payload_size(const Bytes& blob) {
  uint64_t size = 0;
  std::memcpy(&size, blob.data() + 16, 8);
  return static_cast<size_t>(std::min<uint64_t>(size, blob.size() - 64));
}

void mend(Bytes& blob) {
  if (blob.size() < 64) return;
  const uint64_t size = payload_size(blob);
  const etcuda::Digest digest = etcuda::sha256(blob.data() + 64, static_cast<size_t>(size));
  std::memcpy(blob.data() + 16, &size, 8);
  std::memcpy(blob.data() + 24, digest.data(), digest.size());
}

void flip(Bytes& blob, size_t limit, Random& random) {
  for (uint64_t n = 1 + random() % 8; n > 0; --n)
    blob[random() % limit] ^= static_cast<uint8_t>(1u << random() % 8);
}

void overwrite(Bytes& blob, size_t limit, Random& random) {
  static const uint64_t values[] = {
      0, 1, 0x7f, 0xff, 0xffff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, ~0ull, 1ull << 63};
  const size_t width = size_t{1} << random() % 4;
  const uint64_t value = random() % 4 == 0 ? random() : values[random() % 10];
  const size_t at = random() % (limit - width) / width * width;
  std::memcpy(blob.data() + at, &value, width);
}

void splice(Bytes& blob, const Bytes& other, size_t limit, Random& random) {
  const size_t length = 1 + random() % 64;
  const size_t from = random() % (std::min(limit, other.size()) - 1);
  const size_t to = random() % (limit - 1);
  const size_t n = std::min({length, other.size() - from, limit - to});
  std::memcpy(blob.data() + to, other.data() + from, n);
}

struct Mutant {
  Bytes blob;
  const char* kind;
};

Mutant mutate(const std::vector<Bytes>& seeds, Random& random) {
  Mutant mutant{seeds[random() % seeds.size()], ""};
  const Bytes& other = seeds[random() % seeds.size()];
  Bytes& blob = mutant.blob;
  const size_t described = 64 + payload_size(blob);
  switch (random() % 8) {
    case 0:
      blob.resize(random() % blob.size());
      return mutant.kind = "truncated", mutant;
    case 1:
      blob.resize(64 + random() % payload_size(blob));
      mend(blob);
      return mutant.kind = "truncated description", mutant;
    case 2:
      flip(blob, blob.size(), random);
      return mutant.kind = "flipped anywhere", mutant;
    case 3:
      blob.assign(random() % 4096, 0);
      for (uint8_t& byte : blob) byte = static_cast<uint8_t>(random());
      if (blob.size() >= 64 && random() % 2 == 0) std::memcpy(blob.data(), other.data(), 16 + random() % 48);
      return mutant.kind = "foreign", mutant;
    case 4:
      flip(blob, described, random);
      break;
    case 5:
    case 6:
      overwrite(blob, described, random);
      break;
    default:
      splice(blob, other, described, random);
      break;
  }
  mutant.kind = "description changed";
  if (random() % 4 != 0) {
    mend(blob);
    mutant.kind = "description changed, hash mended";
  }
  return mutant;
}

// An empty vector: whatever the blob now claims, the fake image touches no element of it.
void call(Loaded& delegate) {
  TensorValue in = TensorValue::floats({}), out(executorch::aten::ScalarType::Float, {8}, 4);
  const Error ignored = delegate.execute({in.value(), out.value()});
  static_cast<void>(ignored);
}

std::vector<Bytes> make_seeds() {
  std::vector<Bytes> seeds;
  BlobRecipe recipe;
  seeds.push_back(recipe.build());
  recipe.state = bytes_of({1, 2, 3, 4, 5, 6, 7, 8});
  recipe.state_name = "another_cache";
  seeds.push_back(recipe.build());
  recipe.edit = [](etcuda::schema::DelegateT& root) {
    root.inputs[0]->dims.assign(4, etcuda::schema::Dim(1, 64, 1));
    root.inputs[0]->dim_order = {0, 2, 3, 1};
    using etcuda::schema::SizeOp;
    add_size(root.sizes, "8*m",
             {step(SizeOp::size, 0), step(SizeOp::constant, 8), step(SizeOp::exact_divide),
              step(SizeOp::constant, 8), step(SizeOp::multiply)});
    add_size(root.conditions, "n < 64",
             {step(SizeOp::size, 0), step(SizeOp::constant, 64), step(SizeOp::less)});
    root.constants[0]->sizes = {2, 2, 2};
    root.constants[0]->strides = {4, 1, 2};
    root.producers.push_back(std::make_unique<etcuda::schema::KeyValueT>());
    root.producers[0]->key = "torch";
    root.images.push_back(std::make_unique<etcuda::schema::ImageT>(*root.images[0]));
  };
  seeds.push_back(recipe.build());
  return seeds;
}

}  // namespace

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 4000;
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const std::vector<Bytes> seeds = make_seeds();
  // A state may claim any size.
  etcuda_set_memory_limit(0, 0, 64 << 20);
  BlobRecipe with_state;
  with_state.state = bytes_of({1, 2, 3, 4, 5, 6, 7, 8});
  const MemoryDataMap data(with_state);
  for (const Bytes& seed : seeds) {
    if (Loaded(seed, &data).error != Error::Ok) {
      std::printf("an unchanged blob does not load: %s\n", etcuda::last_reported_error().c_str());
      return 1;
    }
  }
  std::map<std::string, std::pair<long, long>> outcomes;  // errors, loads
  std::map<std::string, long> messages;
  for (long i = 0; i < count; ++i) {
    const Mutant mutant = mutate(seeds, random);
    const bool changed = std::find(seeds.begin(), seeds.end(), mutant.blob) == seeds.end();
    Loaded delegate(mutant.blob, &data);
    if (delegate.error == Error::Ok) {
      ++outcomes[mutant.kind].second;
      call(delegate);
      if (changed && std::strcmp(mutant.kind, "description changed") == 0) {
        std::printf("blob %ld loads although its hash is wrong\n", i);
        return 1;
      }
    } else {
      ++outcomes[mutant.kind].first;
      ++messages[etcuda::last_reported_error().substr(0, 40)];
    }
  }
  long errors = 0;
  for (const auto& [kind, counts] : outcomes) {
    std::printf("%-34s %5ld errors, %4ld loaded\n", kind.c_str(), counts.first, counts.second);
    errors += counts.first;
  }
  std::printf("%ld blobs, %ld errors of %zu kinds, no crash\n", count, errors, messages.size());
  return errors > count / 2 && messages.size() > 10 ? 0 : 1;
}
