// SHA-256 with and without the processor's instructions, and the text that messages show.
#include <random>

#include "check.h"
#include "core/sha256.h"
#include "core/sha256_blocks.h"
#include "core/text.h"

using namespace etcuda;

namespace {

std::vector<uint8_t> random_bytes(size_t nbytes) {
  std::mt19937 random(7);
  std::vector<uint8_t> bytes(nbytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

using State = std::array<uint32_t, 8>;

State some_state(uint32_t seed) {
  State state;
  for (uint32_t i = 0; i < 8; ++i) state[i] = (seed + i) * 2654435761u;
  return state;
}

}  // namespace

TEST(sha256_in_both_kinds_of_code) {
  if (!sha256_x86_runs()) return;
  // At an odd address too.
  const std::vector<uint8_t> bytes = random_bytes(64 * 40 + 1);
  for (const size_t blocks : {0, 1, 2, 3, 17, 40}) {
    State expected = some_state(1), other = some_state(2);
    sha256_blocks_portable(expected.data(), bytes.data() + 1, blocks);
    sha256_blocks_portable(other.data(), bytes.data(), blocks);
    State one = some_state(1), first = some_state(1), second = some_state(2);
    sha256_blocks_x86(one.data(), bytes.data() + 1, blocks);
    CHECK(one == expected);
    sha256_blocks_x86(first.data(), bytes.data() + 1, second.data(), bytes.data(), blocks);
    CHECK(first == expected);
    CHECK(second == other);
  }
}

TEST(sha256_in_steps) {
  const std::vector<uint8_t> bytes = random_bytes(1000);
  for (size_t nbytes = 0; nbytes < bytes.size(); nbytes += 13) {
    const Digest expected = sha256(bytes.data(), nbytes);
    Sha256 first(bytes.data(), nbytes), second(bytes.data() + 1, nbytes);
    CHECK_EQ(first.blocks_left(), nbytes / 64);
    Sha256::advance_both(first, second, nbytes / 128);
    first.advance(first.blocks_left() / 2);
    CHECK(first.finish() == expected);
    CHECK(second.finish() == sha256(bytes.data() + 1, nbytes));
  }
}

TEST(digests_in_messages) {
  CHECK_EQ(shortened(sha256("abc", 3)), std::string("ba7816bf8f01..."));
}

TEST(text_of_files_is_printable) {
  CHECK_EQ(printable("layer.0 = \xC3\xA4, \xE2\x82\xAC, \xF0\x9F\x98\x80\tand\n"),
           std::string("layer.0 = \xC3\xA4, \xE2\x82\xAC, \xF0\x9F\x98\x80\tand\n"));
  CHECK_EQ(printable(std::string_view("a\0b\x1B[31m\x7F", 9)), std::string("a\\x00b\\x1b[31m\\x7f"));
  CHECK_EQ(printable("\xFFtcuda"), std::string("\\xfftcuda"));
  // Cut off, longer than needed, a surrogate, beyond the last, a control character of two bytes.
  CHECK_EQ(printable("\xE2\x82"), std::string("\\xe2\\x82"));
  CHECK_EQ(printable("\xC0\xAF\xE0\x80\xAF"), std::string("\\xc0\\xaf\\xe0\\x80\\xaf"));
  CHECK_EQ(printable("\xED\xA0\x80"), std::string("\\xed\\xa0\\x80"));
  CHECK_EQ(printable("\xF4\x90\x80\x80"), std::string("\\xf4\\x90\\x80\\x80"));
  CHECK_EQ(printable("\xC2\x9B"), std::string("\\xc2\\x9b"));
  CHECK_EQ(printable("\x80"), std::string("\\x80"));
}

TEST(text_is_cut_between_characters) {
  CHECK_EQ(whole_characters("abc", 5), size_t{3});
  CHECK_EQ(whole_characters("abc", 2), size_t{2});
  CHECK_EQ(whole_characters("a\xE2\x82\xACz", 3), size_t{1});
  CHECK_EQ(whole_characters("a\xE2\x82\xACz", 4), size_t{4});
}
