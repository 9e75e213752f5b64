// Kernels that are launched while the kernel in front of them still runs, and wait for its end on the GPU
// ("programmatic dependent launch", compute capability 9.0). Such a kernel's name says so.
#pragma once

#include "cuda/driver.h"

namespace etcuda {

// Whether the kernel of that name waits by itself: the name ends in "_pdl".
bool waits_by_itself(const char* name);

// cuLaunchKernel that does not wait for the kernel in front. A driver too old for it waits, which is slower
// alone.
CUresult launch_pdl(Driver& driver, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                    CUstream stream, void** arguments, void** extra);

}  // namespace etcuda
