#include "cuda/pdl.h"

#include <cstring>

namespace etcuda {

bool waits_by_itself(const char* name) {
  constexpr char kSuffix[] = "_pdl";
  const size_t length = std::strlen(name);
  const size_t suffix = sizeof(kSuffix) - 1;
  return length >= suffix && std::strcmp(name + length - suffix, kSuffix) == 0;
}

CUresult launch_pdl(Driver& driver, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                    CUstream stream, void** arguments, void** extra) {
  if (driver.cuLaunchKernelEx == nullptr) {
    return driver.cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
                                 stream, arguments, extra);
  }
  CudaLaunchAttribute attribute{};
  attribute.id = kLaunchProgrammaticStreamSerialization;
  attribute.value.number = 1;
  CudaLaunchConfig config{};
  config.grid_x = grid_x;
  config.grid_y = grid_y;
  config.grid_z = grid_z;
  config.block_x = block_x;
  config.block_y = block_y;
  config.block_z = block_z;
  config.shared_bytes = shared_bytes;
  config.stream = stream;
  config.attributes = &attribute;
  config.num_attributes = 1;
  return driver.cuLaunchKernelEx(&config, function, arguments, extra);
}

}  // namespace etcuda
