// Every function that a code image may import, by name.
#pragma once

#include <cstddef>

namespace etcuda {

// Null if there is none of that name.
void* find_shim(const char* name);

// All names, sorted.
const char* const* shim_names(size_t* count);

}  // namespace etcuda
