// What the processor of this machine can do.
#pragma once

#include <string>

namespace etcuda {

// Whether it has what an x86-64 level such as "x86-64-v3" promises. Unknown levels are not had.
bool processor_has(const std::string& isa);

// Whether it has AVX2, FMA and F16C, which the host's matrix product takes.
bool processor_has_avx2_fma_f16c();

}  // namespace etcuda
