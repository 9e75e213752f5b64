// Memory of the host that is pinned, by this library or by others, so that the GPU itself may write to it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace etcuda {

// The driver's number of the pinned allocation that all of these bytes lie in; 0: they do not lie in one. No
// number is used twice in a process.
uint64_t pinned_allocation(const void* data, size_t nbytes);

// Pins the pages that hold these bytes, until they are unpinned by the same address. Throws Failure.
void pin_pages(void* data, size_t nbytes);
void unpin_pages(void* data);

}  // namespace etcuda
