#include "image/select.h"

#include <algorithm>

#include "core/failure.h"
#include "core/processor.h"
#include "cuda/driver.h"

namespace etcuda {
namespace {

std::string list_targets(const std::vector<ImageSpec>& images) {
  std::string text;
  for (const ImageSpec& image : images) {
    if (image.part != 0) continue;
    if (!text.empty()) text += ", ";
    text += image.target;
    if (image.code_kind == CodeKind::kPtx) text += " (PTX)";
    if (!image.isa.empty()) text += " (" + image.isa + ")";
  }
  return text;
}

// Better fits are larger; 0 does not run.
int rank_for_gpu(const ImageSpec& image, int capability) {
  if (image.device != kCuda) return 0;
  if (image.code_kind == CodeKind::kPtx) {
    return image.compute_capability <= capability ? 1 + image.compute_capability : 0;
  }
  const bool runs =
      image.compute_capability / 10 == capability / 10 && image.compute_capability <= capability;
  // Machine code of the same major version beats PTX, a closer minor version beats a farther one.
  return runs ? 100000 + image.compute_capability : 0;
}

// Made for the same machine: parts of one program's code.
bool are_of_one_target(const ImageSpec& one, const ImageSpec& other) {
  return one.target == other.target && one.device == other.device &&
         one.compute_capability == other.compute_capability && one.code_kind == other.code_kind &&
         one.machine == other.machine && one.isa == other.isa;
}

// The part with the kernel that takes the most shared memory.
const ImageSpec& largest_part(const std::vector<ImageSpec>& images, const ImageSpec& first) {
  const ImageSpec* largest = &first;
  for (const ImageSpec& image : images) {
    if (are_of_one_target(image, first) && image.shared_memory > largest->shared_memory) largest = &image;
  }
  return *largest;
}

// GPUs of one major version do not all have as much: 163 KiB on sm_80, 99 KiB on sm_86 and sm_89.
[[noreturn]] void refuse_large(const ImageSpec& image, const MachineSpec& machine) {
  fail(ErrorCode::NotSupported,
       "kernel %s of the code for %s needs %u bytes of shared memory a block, this GPU, %s of compute "
       "capability %d.%d (sm_%d), has %u. Export the model with target=\"sm_%d\", or with "
       "target=\"portable\", which keeps to what every GPU has.",
       image.largest_kernel.c_str(), image.target.c_str(), image.shared_memory, machine.gpu_name.c_str(),
       machine.capability / 10, machine.capability % 10, machine.capability, machine.shared_memory,
       machine.capability);
}

}  // namespace

MachineSpec this_machine(const std::vector<ImageSpec>& images, int cuda_device) {
  MachineSpec machine;
  const bool wants_gpu =
      std::any_of(images.begin(), images.end(), [](const ImageSpec& image) { return image.device == kCuda; });
  if (!wants_gpu) {
    machine.no_gpu_reason = "the model holds no GPU code";
    return machine;
  }
  Driver* driver = Driver::get();
  if (driver == nullptr) {
    machine.no_gpu_reason = Driver::unavailable_reason();
    return machine;
  }
  if (cuda_device < 0 || cuda_device >= driver->device_count()) {
    fail(ErrorCode::InvalidArgument,
         "CUDA device %d does not exist: this machine has %d. Choose one of those.", cuda_device,
         driver->device_count());
  }
  machine.has_gpu = true;
  machine.capability = driver->device(cuda_device).capability;
  machine.shared_memory = static_cast<uint32_t>(driver->device(cuda_device).shared_memory);
  machine.gpu_name = driver->device(cuda_device).name;
  return machine;
}

const ImageSpec& select_image(const std::vector<ImageSpec>& images, const MachineSpec& machine) {
  const ImageSpec* best = nullptr;
  int best_rank = 0;
  const ImageSpec* lacking = nullptr;
  const ImageSpec* too_large = nullptr;
  for (const ImageSpec& image : images) {
    if (image.machine != "x86_64" || image.part != 0) continue;
    if (!processor_has(image.isa)) {
      lacking = &image;
      continue;
    }
    const int rank =
        image.device == kHost ? 1 : (machine.has_gpu ? rank_for_gpu(image, machine.capability) : 0);
    if (rank > 0 && image.device == kCuda) {
      const ImageSpec& largest = largest_part(images, image);
      if (largest.shared_memory > machine.shared_memory) {
        too_large = &largest;
        continue;
      }
    }
    if (rank > best_rank) {
      best_rank = rank;
      best = &image;
    }
  }
  if (best != nullptr) return *best;
  if (too_large != nullptr) refuse_large(*too_large, machine);
  const std::string targets = list_targets(images);
  if (lacking != nullptr) {
    fail(ErrorCode::NotSupported,
         "this model's code needs a processor of level %s, which this one is not. It is compiled for: %s. "
         "Export "
         "it with a lower host_isa, or run it on a newer processor.",
         lacking->isa.c_str(), targets.c_str());
  }
  if (!machine.has_gpu) {
    fail(ErrorCode::NotSupported,
         "this model is compiled for %s and there is no usable GPU: %s. Run it on a machine with a GPU and "
         "its "
         "driver, or export it with target=\"host\".",
         targets.c_str(), machine.no_gpu_reason.c_str());
  }
  fail(ErrorCode::NotSupported,
       "this model is compiled for %s, this GPU is %s of compute capability %d.%d (sm_%d). Export it with "
       "target=\"sm_%d\".",
       targets.c_str(), machine.gpu_name.c_str(), machine.capability / 10, machine.capability % 10,
       machine.capability, machine.capability);
}

std::vector<const ImageSpec*> images_of_parts(const std::vector<ImageSpec>& images, const ImageSpec& first) {
  uint32_t last_part = 0;
  for (const ImageSpec& image : images) last_part = std::max(last_part, image.part);
  // The blob's reader has seen to it that there are at least as many images.
  std::vector<const ImageSpec*> parts(last_part + 1, nullptr);
  parts[0] = &first;
  for (const ImageSpec& image : images) {
    if (are_of_one_target(image, first) && parts[image.part] == nullptr) parts[image.part] = &image;
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] != nullptr) continue;
    fail(ErrorCode::InvalidProgram, "the code for %s lacks part %zu of %zu. Export the model again.",
         first.target.c_str(), i, parts.size());
  }
  return parts;
}

}  // namespace etcuda
