// Which of a blob's code images runs on this machine.
#pragma once

#include "blob/blob.h"

namespace etcuda {

struct MachineSpec {
  bool has_gpu = false;
  int capability = 0;          // of the GPU
  uint32_t shared_memory = 0;  // bytes, the most that a block may take
  std::string gpu_name;
  std::string no_gpu_reason;
};

// The machine that this process runs on; asks the driver only if an image is for CUDA.
MachineSpec this_machine(const std::vector<ImageSpec>& images, int cuda_device);

// The code of the first part. Throws Failure(NotSupported) that lists what the images are for and what this
// machine is.
const ImageSpec& select_image(const std::vector<ImageSpec>& images, const MachineSpec& machine);

// The code of each part, `first` and those that were made for the same machine. Throws
// Failure(InvalidProgram) if one is missing.
std::vector<const ImageSpec*> images_of_parts(const std::vector<ImageSpec>& images, const ImageSpec& first);

}  // namespace etcuda
