// Text that came out of a file, for messages.
#pragma once

#include <string>
#include <string_view>

namespace etcuda {

// The text with every byte that is not part of UTF-8, and every control character but tab and line feed, as
// \xNN. Python ends a process whose log holds anything else.
std::string printable(std::string_view text);

// The greatest number of bytes, at most `limit`, of printable text that do not end within a character.
size_t whole_characters(std::string_view text, size_t limit);

}  // namespace etcuda
